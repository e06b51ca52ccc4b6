"""Compiled loops give the bits that numpy gives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gaiadask.compiled
from gaiadask.compiled import compiled


@compiled
def multiplied_and_added(a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(out)):
        out[i] = a[i] * b[i] + c[i]


@compiled
def summed(values):
    total = 0.0
    for i in range(len(values)):
        total += values[i]
    return total


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_product_is_rounded_before_it_is_added_to(dtype):
    # In each row a fused operation would give another result: a * b is not a float, and c takes away its leading bits.
    rng = np.random.default_rng(1)
    a, b = (rng.uniform(1, 2, 10_000).astype(dtype) for _ in range(2))
    c = -(a * b)
    out = np.empty_like(a)
    multiplied_and_added(a, b, c, out)
    assert (out == 0).all()
    assert (a.astype(np.longdouble) * b != a * b).mean() > 0.9


def test_a_sum_is_added_in_the_order_that_is_written():
    values = np.random.default_rng(2).normal(size=10_000) * 10.0 ** np.arange(10_000).clip(0, 12)
    assert summed(values) == np.cumsum(values)[-1]


def test_a_division_by_zero_gives_what_numpy_gives():
    @compiled
    def divided(a, b):
        return a / b

    assert divided(1.0, 0.0) == np.inf
    assert np.isnan(divided(0.0, 0.0))


@pytest.mark.slow
def test_where_no_cache_can_be_written_functions_are_compiled_all_the_same(tmp_path):
    (tmp_path / "some_loops.py").write_text(
        "from gaiadask.compiled import compiled\n\n@compiled\ndef twice(a):\n    return 2 * a\n\nprint(twice(21))\n"
    )
    # Of numba's places for a cache only the directory that a user names, and none is named.
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {
        "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(gaiadask.compiled.__file__).parents[1])]),
    }
    run = subprocess.run(
        [sys.executable, "-c", "import some_loops"], env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert run.stdout.strip() == "42", run.stderr
    assert not list(tmp_path.rglob("*.nbi"))
