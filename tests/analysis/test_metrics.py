from math import comb

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hetmodels.analysis import fourier, fsc, metrics
from hetmodels.errors import DataError


def test_ari_in_closed_cases():
    a = np.array([0, 0, 1, 1, 2, 2])
    assert metrics.ari(a, (a + 1) % 3) == 1.0
    assert metrics.ari(a, np.zeros(6)) == 0.0
    assert metrics.ari(np.zeros(6), np.ones(6)) == 1.0
    assert metrics.ari(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == pytest.approx(-0.5)
    with pytest.raises(DataError, match="found 6 and 5"):
        metrics.ari(a, a[:5])


def test_ari_is_pair_counting_by_brute_force():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, 40), rng.integers(0, 4, 40)
    pairs = [(i, j) for i in range(40) for j in range(i)]
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    one, other = (sum(x[i] == x[j] for i, j in pairs) for x in (a, b))
    expected = one * other / comb(40, 2)
    assert metrics.ari(a, b) == pytest.approx((both - expected) / (0.5 * (one + other) - expected), abs=1e-14)


def test_ari_of_unrelated_labels_averages_zero():
    rng = np.random.default_rng(1)
    values = [metrics.ari(rng.integers(0, 3, 100), rng.integers(0, 3, 100)) for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)


def test_class_matching_undoes_a_permutation():
    true = np.array([1] * 5 + [2] * 4 + [3] * 3)
    assigned = np.array([3] * 5 + [1] * 4 + [2] * 2 + [3])
    assert metrics.match_classes(assigned, true) == ({3: 1, 1: 2, 2: 3}, pytest.approx(11 / 12))


def test_latent_spearman_of_monotone_rotated_and_unrelated_latents():
    rng = np.random.default_rng(2)
    true = rng.uniform(size=400)
    noise = rng.standard_normal((400, 2))
    assert metrics.latent_spearman(true, -np.exp(true)[:, None]) == pytest.approx(1.0)
    turned = np.column_stack([true + noise[:, 0], true - noise[:, 0]])  # the sum of axes is the truth
    assert metrics.latent_spearman(true, turned) > 0.99
    assert metrics.latent_spearman(true, noise) < 0.2
    assert metrics.latent_spearman(true, np.zeros((400, 1))) == 0.0


def calibrated(n=4000, dims=2):
    """Prior N(0, I), observation noise by axis: exact posterior means and sds, known truth along one direction."""
    rng = np.random.default_rng(3)
    z, noise = rng.standard_normal((n, dims)), rng.uniform(0.2, 2.0, (n, dims))
    shrink = 1 / (1 + noise**2)
    return z, shrink * (z + noise * rng.standard_normal((n, dims))), np.sqrt(1 - shrink)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_of_a_calibrated_posterior_is_its_level(level):
    z, mean, sd = calibrated()
    direction = np.array([3.0, -1.0])
    true = 7.0 + z @ direction
    located, width = metrics.in_true_gauge(true, mean, sd)
    assert metrics.coverage(true, located, width, level) == pytest.approx(level, abs=0.03)
    np.testing.assert_allclose(width, np.sqrt((sd**2) @ direction**2), rtol=0.1)
    assert metrics.coverage(true, located, width / 2, 0.9) < 0.75


def test_neighbourhood_similarity_from_one_to_chance():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((300, 2))
    assert metrics.neighbourhood_similarity(x, 2 * x + 1, 10) == pytest.approx(11 / 10)
    other = rng.standard_normal((300, 2))
    ranks = [np.argsort(np.argsort(((v[:, None] - v) ** 2).sum(-1), axis=1), axis=1) < 11 for v in (x, other)]
    dense = (ranks[0] & ranks[1]).sum() / (10 * 300)
    assert metrics.neighbourhood_similarity(x, other, 10) == pytest.approx(dense)


def test_principal_angles():
    a, b, c = np.eye(9)[:3]
    other = np.stack([2 * a, a + b + np.sqrt(3) * c])
    found = metrics.principal_angles(np.stack([a, b]).reshape(2, 3, 3), other.reshape(2, 3, 3))
    np.testing.assert_allclose(found, [0.0, np.pi / 3], atol=1e-7)


@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_error_is_free_of_the_global_frame_and_of_outliers(mirrored):
    true = Rotation.random(300, random_state=0).as_matrix()
    turn = Rotation.random(random_state=1).as_matrix()
    wobble = Rotation.from_rotvec(np.radians(2.0) * np.eye(3)[np.arange(300) % 3]).as_matrix()
    source = metrics.FLIP @ true @ metrics.FLIP if mirrored else true
    estimated = wobble @ source @ turn
    estimated[::4] = Rotation.random(75, random_state=2).as_matrix()
    errors, found, other = metrics.rotation_errors(estimated, true, hands=True)
    assert other == mirrored
    assert np.degrees(np.median(errors)) == pytest.approx(2.0, abs=0.15)
    assert np.degrees(metrics.geodesic(found, turn)) < 0.3
    assert metrics.rotation_errors(true, true)[0].max() < 1e-7


def test_geodesic_is_the_rotation_angle():
    angles = np.array([0.0, 1e-9, 0.3, np.pi])
    turned = Rotation.from_rotvec(angles[:, None] * np.array([0.6, 0.0, 0.8])).as_matrix()
    np.testing.assert_allclose(metrics.geodesic(turned, np.eye(3)), angles, rtol=1e-6, atol=1e-12)


def test_pair_scores_repeat_and_match_single_scores():
    rng = np.random.default_rng(5)
    maps = {i: rng.standard_normal((16,) * 3) for i in (1, 2)}
    truths = {s: maps[1] + s * rng.standard_normal((16,) * 3) for s in (1, 2, 3)}
    pairs = np.array([[1, 1], [2, 3], [1, 1], [1, 2]])
    mask = rng.random((16,) * 3)
    areas, resolutions = metrics.pair_scores(maps.__getitem__, truths.__getitem__, pairs, 2.0, mask)
    for (m, s), area, resolution in zip(pairs, areas, resolutions, strict=True):
        assert area == pytest.approx(fsc.area(fsc.cryobench_curve(maps[m], truths[s], mask), 16), abs=1e-12)
        assert resolution == pytest.approx(fsc.fsc(maps[m], truths[s], 2.0, mask).resolution(0.5).resolution)
    assert fourier.check_map(maps[1]) is maps[1]


def test_latent_spearman_follows_a_bent_curve():
    rng = np.random.default_rng(3)
    true = rng.uniform(-1, 1, size=2000)
    arc = np.column_stack([np.sin(2.2 * true), np.cos(2.2 * true)]) + 0.02 * rng.standard_normal((2000, 2))
    turn = np.array([[0.8, 0.6], [-0.6, 0.8]])
    best_axis = max(abs(np.corrcoef(np.argsort(np.argsort(true)), a)[0, 1]) for a in (arc @ turn).T)
    assert metrics.latent_spearman(true, arc @ turn) > 0.97 > best_axis
    assert metrics.latent_spearman(true, rng.standard_normal((2000, 4))) < 0.08


def test_information_imbalance_of_equal_nested_and_unrelated_embeddings():
    rng = np.random.default_rng(4)
    plane, other = rng.uniform(size=(800, 2)), rng.uniform(size=(800, 2))
    assert metrics.information_imbalance(plane, 3 * plane - 1, 5) == pytest.approx(6 / 800)
    assert metrics.information_imbalance(plane, other, 5) == pytest.approx(1, abs=0.06)
    to_axis = metrics.information_imbalance(plane, plane[:, :1], 1)
    back = metrics.information_imbalance(plane[:, :1], plane, 1)
    assert to_axis < 0.1 < 0.3 < back  # the plane tells its axis, the axis does not tell the plane
