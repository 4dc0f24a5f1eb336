"""Half sets and held-out particles: whole units, balanced, the same every time."""

import numpy as np
import pytest

from hetmodels.data.splits import FEWEST, held_out, number, split
from hetmodels.errors import UsageError


def table(micrographs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Image numbers and micrographs of unequal size, rows in mixed order."""
    rng = np.random.default_rng(seed)
    micrograph = rng.permutation(np.repeat(np.arange(micrographs), rng.integers(1, 40, micrographs)))
    return np.arange(len(micrograph)), micrograph


def together(values: np.ndarray, unit: np.ndarray) -> bool:
    """Whether no unit is torn apart."""
    return all(len(np.unique(values[unit == u])) == 1 for u in np.unique(unit))


def test_numbers_in_order_of_appearance():
    assert number(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_micrographs_stay_whole_and_the_halves_balanced():
    image, micrograph = table(60)
    parts = split(image, micrograph, None, "seed")
    sizes = np.bincount(micrograph)
    assert together(parts.half, micrograph) and together(parts.held_out, micrograph)
    assert abs(int((parts.half == 0).sum()) - int((parts.half == 1).sum())) <= sizes.max()
    assert abs(parts.held_out.sum() - 0.1 * len(image)) <= sizes.max() / 2
    assert "by micrograph (60" in parts.note


def test_halves_share_the_held_out_particles():
    image, micrograph = table(200)
    parts = split(image, micrograph, None, "seed")
    counts = np.bincount(parts.half[parts.held_out], minlength=2)
    assert counts.min() > 0.6 * counts.max()


def test_same_seed_same_split_and_other_seed_another():
    image, micrograph = table(60)
    first, again, other = (split(image, micrograph, None, seed) for seed in ("a", "a", "b"))
    np.testing.assert_array_equal(first.half, again.half)
    np.testing.assert_array_equal(first.held_out, again.held_out)
    assert np.any(first.half != other.half) and np.any(first.held_out != other.held_out)


def test_few_micrographs_are_split_by_particle():
    image, micrograph = table(FEWEST - 1)
    parts = split(image, micrograph, None, "seed")
    assert abs(int((parts.half == 0).sum()) - int((parts.half == 1).sum())) <= 1
    assert abs(parts.held_out.sum() - 0.1 * len(image)) <= 0.5
    assert f"micrographs: {FEWEST - 1}" in parts.note


def test_rows_of_one_image_stay_together():
    image = np.repeat(np.arange(100), 3)
    parts = split(image, None, None, "seed")
    assert together(parts.half, image) and together(parts.held_out, image)


def test_half_sets_of_the_table_are_kept():
    image, micrograph = table(60)
    subset = np.random.default_rng(1).integers(1, 3, len(image))
    parts = split(image, micrograph, subset, "seed")
    np.testing.assert_array_equal(parts.half, subset - 1)
    assert together(parts.held_out, micrograph)
    assert "the table's own" in parts.note


def test_larger_fractions_contain_smaller_ones():
    image, micrograph = table(60)
    parts = split(image, micrograph, None, "seed")
    held = [parts.with_holdout(fraction).held_out for fraction in (0.0, 0.05, 0.1, 0.3, 0.5)]
    assert not held[0].any()
    np.testing.assert_array_equal(held[2], parts.held_out)
    for small, large in zip(held, held[1:], strict=False):
        assert np.all(large[small]) and large.sum() > small.sum()


def test_something_always_trains():
    assert not held_out(np.zeros(7, np.int64), np.zeros(7), 0.5, "seed").any()
    assert not split(np.arange(4), None, None, "seed").held_out.any()


@pytest.mark.parametrize("fraction", [-0.1, 0.6, float("nan")])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(UsageError, match="--holdout"):
        split(np.arange(40), None, None, "seed").with_holdout(fraction)
