"""Keys, and what differs where two are not the same: named, and in one screen."""

from __future__ import annotations

from typing import Any

import pytest

from gaiadask.keys import differences


@pytest.mark.parametrize(
    ("held", "asked", "told"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "b: 2 there, 3 asked for"),
        ({"a": {"x": 1}}, {"a": {"x": 1, "y": 2}}, "a.y: None there, 2 asked for"),
        ({"c": ["x" * 50, "y"]}, {"c": ["x" * 50, "z"]}, "c: ['y'] there, ['z'] asked for"),
        ({"a": 1, "b": 1}, {"a": 2, "b": 2}, "a: 1 there, 2 asked for; b: 1 there, 2 asked for"),
        ({"c": ("y",)}, {"c": ["z"]}, "c: ['y'] there, ['z'] asked for"),
        ({"f": [{"uri": "/a", "size": 1}]}, {"f": [{"uri": "/a", "size": 2}]}, "f[/a].size: 1 there, 2 asked for"),
        (
            {"f": [{"uri": "/a", "size": 1}]},
            {"f": [{"uri": "/b", "size": 1}]},
            "f: [{'uri': '/a', 'size': 1}] there, [{'uri': '/b', 'size': 1}] asked for",
        ),
    ],
)
def test_differences_name_the_leaves(held: Any, asked: Any, told: str) -> None:
    assert differences(held, asked) == told


def test_many_differences_fit_on_a_screen_and_the_first_ones_are_told() -> None:
    held = {
        "files": [{"uri": f"/data/field_{i:03d}.csv", "size": 10, "mtime": str(i)} for i in range(1_000)],
        "where": "x" * 5_000 + "a" + "y" * 99,
    }
    asked = {"files": [file | {"mtime": "later"} for file in held["files"]], "where": "x" * 5_000 + "b" + "y" * 99}
    told = differences(held, asked)
    assert len(told) < 2_000
    assert "files[/data/field_000.csv].mtime: '0' there, 'later' asked for" in told
    assert told.endswith("and 993 more")
    assert len(differences({"a": held["files"]}, {"a": [{"uri": "/b"}]})) < 200
    only = differences({"where": held["where"]}, {"where": asked["where"]})
    assert "xa" in only
    assert "xb" in only
