"""Each set of the suite has the heterogeneity that it is named for."""

import numpy as np
import pytest

from hetmodels.data.suite import SUITES, suite

BOX, PIXEL, K = 32, 6.0, 16


@pytest.fixture(scope="module")
def sets():
    return {name: suite(name, K, BOX, PIXEL, seed=1) for name in SUITES}


def shapes(found):
    return [np.asarray(v.centres) for v in found.volumes]


def test_all_lie_in_the_box_and_repeat_with_the_seed(sets):
    for name, found in sets.items():
        assert len(found.volumes) == K and found.name == name
        assert max(np.linalg.norm(s, axis=1).max() for s in shapes(found)) < 0.45 * BOX * PIXEL
        again = suite(name, K, BOX, PIXEL, seed=1)
        np.testing.assert_array_equal(shapes(found)[3], shapes(again)[3])
    assert not np.array_equal(shapes(sets["linker"])[3], shapes(suite("linker", K, BOX, PIXEL, seed=2))[3])


@pytest.mark.parametrize("name", ["motion", "linker"])
def test_only_the_arm_moves_and_it_stays_rigid(sets, name):
    found = shapes(sets[name])
    body = np.stack([s[:84] - s[0] for s in found])
    np.testing.assert_allclose(body, body[:1].repeat(K, 0), atol=1e-3)
    arms = np.stack([s[84:] for s in found])
    apart = np.linalg.norm(arms[:, :, None] - arms[:, None], axis=-1)
    np.testing.assert_allclose(apart, apart[:1].repeat(K, 0), atol=1e-2)
    assert np.linalg.norm(arms[:, -1] - arms[0, -1], axis=1).max() > 30


def test_one_motion_goes_once_round(sets):
    place = sets["motion"].latents
    np.testing.assert_allclose(np.linalg.norm(place, axis=1), 1)
    tips = np.stack([s[-1] for s in shapes(sets["motion"])])
    steps = np.linalg.norm(tips - np.roll(tips, 1, axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)


def test_parts_come_and_go_in_all_ways_and_unequally(sets):
    sizes = [len(s) for s in shapes(sets["assembly"])]
    assert max(sizes) == 120 and min(sizes) == 25
    weights = sets["assembly"].weights
    assert len(set(sizes)) == 16 and max(weights) / min(weights) > 4


def test_the_ensemble_fluctuates_and_keeps_its_shape(sets):
    found = np.stack(shapes(sets["ensemble"]))
    middle = found.mean(0)
    fluctuation = np.sqrt(((found - middle) ** 2).sum(2).mean(0))
    assert 2 < fluctuation.mean() < 10
    start = np.asarray(suite("motion", 2, BOX, PIXEL).volumes[0].centres)
    assert np.linalg.norm(middle - start, axis=1).mean() < 10


def test_species_are_unrelated_and_of_many_sizes(sets):
    assert len({len(s) for s in shapes(sets["species"])}) > 8
