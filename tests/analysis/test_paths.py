import numpy as np
import pytest

from hetmodels.analysis.paths import minimise, minimum_energy_path
from hetmodels.errors import UsageError

HEIGHT = np.array([-200.0, -100, -170, 15])
A, B, C = np.array([-1.0, -1, -6.5, 0.7]), np.array([0.0, 0, 11, 0.6]), np.array([-10.0, -10, -6.5, 0.7])
CENTRE = np.array([[1.0, 0], [0, 0.5], [-0.5, 1.5], [-1, 1]])
MINIMA = {-146.70: (-0.558, 1.442), -80.77: (-0.050, 0.467), -108.17: (0.623, 0.028)}
SADDLES = {-40.66: (-0.822, 0.624), -72.25: (0.212, 0.293)}


def terms(z):
    x, y = z[:, :1] - CENTRE[:, 0], z[:, 1:] - CENTRE[:, 1]
    return x, y, HEIGHT * np.exp(A * x**2 + B * x * y + C * y**2)


def energy(z):
    return terms(z)[2].sum(1)


def gradient(z):
    x, y, v = terms(z)
    return np.stack([(v * (2 * A * x + B * y)).sum(1), (v * (B * x + 2 * C * y)).sum(1)], axis=1)


def warp(u):
    """z = h(u), and its derivative, (points, 2, 2): stretched, sheared and bent."""
    z = np.stack([u[:, 0] + 0.3 * np.sin(u[:, 1]), 0.5 * u[:, 1] + 0.2 * u[:, 0]], axis=1)
    one = np.ones(len(u))
    return z, np.stack([one, 0.3 * np.cos(u[:, 1]), 0.2 * one, 0.5 * one], axis=1).reshape(-1, 2, 2)


def unwarp(z):
    from scipy.optimize import fsolve

    return np.stack([fsolve(lambda u, p=p: warp(u[None])[0][0] - p, [p[0], 2 * p[1]]) for p in z])


def distance(points, line):
    """The farthest of some points from a broken line."""
    start, piece = line[:-1], np.diff(line, axis=0)
    share = ((points[:, None] - start) * piece).sum(2) / (piece**2).sum(1)
    foot = start + np.clip(share, 0, 1)[..., None] * piece
    return np.linalg.norm(points[:, None] - foot, axis=2).min(1).max()


@pytest.mark.parametrize("value", MINIMA)
def test_minima_of_mueller_and_brown(value):
    found = minimise(energy, gradient, np.array(MINIMA[value]) + 0.05)
    np.testing.assert_allclose(found, MINIMA[value], atol=2e-3)
    assert energy(found[None])[0] == pytest.approx(value, abs=0.01)


@pytest.fixture(scope="module")
def path():
    return minimum_energy_path(energy, gradient, (np.array([-0.55, 1.4]), np.array([0.6, 0.0])), images=60)


def test_the_path_passes_both_saddles_and_the_minimum_between(path):
    np.testing.assert_allclose(path.saddle, SADDLES[-40.66], atol=2e-3)
    assert path.barrier == pytest.approx(-40.66 + 146.70, rel=1e-3)
    for point in (*SADDLES.values(), MINIMA[-80.77]):
        assert np.linalg.norm(path.points - point, axis=1).min() < 0.03
    inner = path.energy[1:-1]
    tops = inner[(inner > path.energy[:-2]) & (inner > path.energy[2:])]
    np.testing.assert_allclose(sorted(tops), [-72.25, -40.66], rtol=0.01)
    slope = gradient(path.points)[5:-5]
    tangent = np.gradient(path.points, axis=0)[5:-5]
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    across = slope - tangent * (slope * tangent).sum(1, keepdims=True)
    assert np.abs(across).max() < 0.05 * np.abs(slope).max()


def test_in_other_coordinates_the_path_is_the_same_with_the_metric_and_another_without(path):
    def pulled(u):
        z, slope = warp(u)
        return np.einsum("ni,nij->nj", gradient(z), slope)

    def metric(u):
        slope = warp(u)[1]
        return np.einsum("nki,nkj->nij", slope, slope)

    ends = unwarp(np.array([[-0.55, 1.4], [0.6, 0.0]]))
    function = lambda u: energy(warp(u)[0])  # noqa: E731
    found = minimum_energy_path(function, pulled, tuple(ends), metric, images=60)
    back = warp(found.points)[0]
    assert distance(back, path.points) < 0.02
    assert found.length[-1] == pytest.approx(path.length[-1], rel=0.01)
    np.testing.assert_allclose(warp(found.saddle[None])[0][0], path.saddle, atol=2e-3)
    naive = warp(minimum_energy_path(function, pulled, tuple(ends), images=60).points)[0]
    assert distance(naive, path.points) > 2 * distance(back, path.points)


def test_one_basin_has_no_path():
    with pytest.raises(UsageError, match="same minimum"):
        minimum_energy_path(energy, gradient, (np.array([-0.55, 1.4]), np.array([-0.6, 1.45])))
