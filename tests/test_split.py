"""The split: 80/10/10, the same everywhere and for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaiadask.split import TRAIN_SHARE, Part, chosen, hash64, hash_bound, part_of, sample_hash, smallest

# Written down once: a changed number here moves stars between train and test in every store there is. 0 is splitmix64's own
# first output for seed 0.
KNOWN_HASHES = {
    0: 0xE220A8397B1DCDAF,
    1: 10451216379200822465,
    4295806720: 11563685670309255525,
    5853498713160606720: 412808151207780896,
    6917528997577384320: 1347591676743445432,
}


@pytest.mark.parametrize(("source_id", "expected"), KNOWN_HASHES.items())
def test_hashes_are_stable(source_id: int, expected: int) -> None:
    assert int(hash64(source_id)) == expected


def splitmix64(source_id: int) -> int:
    """The finaliser in plain integers, as Steele, Lea and Flood (2014) print it."""
    mask = 2**64 - 1
    z = (source_id + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@given(st.lists(st.integers(0, 2**63 - 1), max_size=20))
def test_vectors_equal_scalars(ids: list[int]) -> None:
    hashes, parts = hash64(np.array(ids, np.int64)), part_of(np.array(ids, np.int64))
    assert hashes.tolist() == [splitmix64(i) for i in ids]
    assert parts.tolist() == [0 if h < 0.8 * 2**64 else 1 if h < 0.9 * 2**64 else 2 for h in hashes.tolist()]
    assert [int(part_of(i)) for i in ids] == parts.tolist()


def test_shares_are_80_10_10_even_of_ids_in_a_row() -> None:
    n = 1_000_000
    for ids in (np.arange(n) << 7, np.random.default_rng(0).integers(0, 2**62, n)):
        shares = np.bincount(part_of(ids), minlength=3) / n
        # Four standard deviations of a binomial share.
        np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=4 * 0.4 / np.sqrt(n))


def test_parts_have_their_names() -> None:
    assert (Part.TRAIN, Part.VALIDATION, Part.TEST) == (0, 1, 2)
    assert part_of(np.empty(0, np.int64)).shape == (0,)


def test_a_sample_of_the_sky_has_the_splits_shares() -> None:
    """`selection.limit` keeps the stars of smallest sample_hash: were it the split's own hash, all would be train stars."""
    ids = np.arange(200_000, dtype=np.int64) << 7
    sample = ids[np.argsort(sample_hash(ids))[:20_000]]
    shares = np.bincount(part_of(sample), minlength=3) / len(sample)
    assert np.allclose(shares, [0.8, 0.1, 0.1], atol=0.01)
    assert sample_hash(ids[5]) == sample_hash(ids)[5]


@given(st.lists(st.integers(0, 2**62), unique=True), st.integers(0, 20))
def test_the_stars_of_smallest_hash_come_in_their_order(ids: list[int], stars: int) -> None:
    hashes = hash64(np.array(ids, np.int64))
    assert hashes[smallest(hashes, stars)].tolist() == sorted(hashes.tolist())[:stars]


@pytest.mark.parametrize("part", Part)
@pytest.mark.parametrize("stars", [100, 1_000, 10_000])
def test_the_bound_leaves_a_few_more_stars_than_asked_for_and_all_of_them_of_its_part(part: Part, stars: int) -> None:
    ids = np.arange(200_000, dtype=np.int64) << 7
    below = hash_bound(part, stars, len(ids))
    found = chosen(ids, part, below)
    assert (part_of(ids[found]) == part).all()
    # Five per cent more than asked for; four standard deviations of the number below a bound.
    assert abs(found.sum() - 1.05 * stars) < 4 * np.sqrt(stars)
    own = hash64(ids[part_of(ids) == part])
    assert set(hash64(ids[found])) == set(own[smallest(own, int(found.sum()))]), "those of smallest hash"


@pytest.mark.parametrize("part", Part)
def test_where_fewer_stars_are_there_than_asked_for_none_is_left_out(part: Part) -> None:
    # Hashes so near 2^64 that their share of the range is rounded to 1; and a catalogue of no star.
    ids = np.arange(50_000, dtype=np.int64) << 7
    for stars, rows in ((len(ids), len(ids)), (1, 0), (int(0.96 * 0.8 * len(ids)), len(ids))):
        if stars < TRAIN_SHARE * len(ids) or part == Part.TRAIN:
            assert hash_bound(part, stars, rows) > 1
            assert np.array_equal(chosen(ids, part, hash_bound(part, stars, rows)), part_of(ids) == part)
    assert not chosen(ids, part, 0.0).any()
