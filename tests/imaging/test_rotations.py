"""Laws of rotations: RELION's matrix, round trips, exponential and logarithm, the Haar measure, even grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from hetmodels.imaging.rotations import (
    from_euler,
    from_quaternion,
    from_rotvec,
    geodesic,
    healpix_directions,
    healpix_grid,
    super_fibonacci,
    to_euler,
    to_quaternion,
    to_rotvec,
    uniform,
)


def skew(w):
    return np.array([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]])


def nearest(rotations, queries):
    """Angle [rad] from each query to the closest of the rotations."""
    q = Rotation.from_matrix(rotations).as_quat()
    chord, _ = cKDTree(np.concatenate([q, -q])).query(Rotation.from_matrix(queries).as_quat())
    return 4 * np.arcsin(chord / 2)


def test_euler_matrix_is_relions_entry_by_entry():
    rot, tilt, psi = np.radians([[13.0, -170.0], [65.0, 110.0], [-40.0, 200.0]])
    with jax.enable_x64(True):
        found = np.asarray(from_euler(rot, tilt, psi))
    for a, r, t, p in zip(found, rot, tilt, psi, strict=True):
        cr, sr, ct, st, cp, sp = np.cos(r), np.sin(r), np.cos(t), np.sin(t), np.cos(p), np.sin(p)
        assert a[0, 0] == pytest.approx(cp * ct * cr - sp * sr, abs=1e-15)
        assert a[0, 1] == pytest.approx(cp * ct * sr + sp * cr, abs=1e-15)
        assert a[0, 2] == pytest.approx(-cp * st, abs=1e-15)
        assert a[1, 0] == pytest.approx(-sp * ct * cr - cp * sr, abs=1e-15)
        assert a[1, 1] == pytest.approx(-sp * ct * sr + cp * cr, abs=1e-15)
        assert a[1, 2] == pytest.approx(sp * st, abs=1e-15)
        assert a[2, 0] == pytest.approx(st * cr, abs=1e-15)
        assert a[2, 1] == pytest.approx(st * sr, abs=1e-15)
        assert a[2, 2] == pytest.approx(ct, abs=1e-15)
        assert np.allclose(a, Rotation.from_euler("ZYZ", [r, t, p]).as_matrix().T, atol=1e-14)


@pytest.mark.parametrize("tilt", [0.0, 1e-9, 1.0, np.pi / 2, np.pi - 1e-9, np.pi])
def test_euler_round_trip(tilt):
    with jax.enable_x64(True):
        a = from_euler(0.7, tilt, -2.1)
        rot, beta, psi = to_euler(a)
        assert np.allclose(from_euler(rot, beta, psi), a, atol=1e-14)
        assert beta == pytest.approx(tilt, abs=1e-14)
        if 1e-3 < tilt < 3:
            assert (float(rot), float(psi)) == pytest.approx((0.7, -2.1), abs=1e-14)


def test_exponential_and_logarithm():
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(40, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.concatenate([[0.0, 1e-12, 1e-6, 0.0316, 0.0317, np.pi - 1e-7], rng.uniform(0, np.pi, 34)])
    w = axes * angles[:, None]
    with jax.enable_x64(True):
        a = from_rotvec(w)
        assert np.allclose(a, [expm(skew(v)) for v in w], atol=1e-14)
        assert np.allclose(to_rotvec(a), w, atol=1e-8)
        assert np.allclose(to_rotvec(a)[:5], w[:5], atol=1e-15)
        assert np.allclose(from_quaternion(to_quaternion(a)), a, atol=1e-14)
        half_turn = from_rotvec(np.pi * axes)
        assert np.allclose(from_rotvec(to_rotvec(half_turn)), half_turn, atol=1e-14)


@pytest.mark.parametrize("angle", [0.0, 1e-8, 0.03162, 0.03163, 1.0])
def test_gradients_of_exponential_and_logarithm(angle):
    """d log(exp(w)) / dw = identity, and at zero the generators themselves."""
    with jax.enable_x64(True):
        w = angle * jnp.array([2.0, -1.0, 2.0]) / 3
        jacobian = jax.jacfwd(lambda v: to_rotvec(from_rotvec(v)))(w)
        assert np.allclose(jacobian, np.eye(3), atol=1e-10)
        if angle == 0:
            generators = jax.jacrev(from_rotvec)(w)
            assert np.allclose(generators, np.moveaxis([skew(e) for e in np.eye(3)], 0, -1), atol=1e-15)


def test_geodesic_is_accurate_at_both_ends():
    with jax.enable_x64(True):
        base = from_euler(0.3, 1.1, 2.0)
        for angle in (0.0, 1e-9, 1e-4, 1.0, np.pi - 1e-7, np.pi):
            other = from_rotvec(angle * jnp.array([0.6, 0.0, 0.8])) @ base
            assert float(geodesic(other, base)) == pytest.approx(angle, abs=1e-14)


def test_single_precision_stays_single_and_accurate():
    rng = np.random.default_rng(1)
    w = rng.normal(size=(200, 3)).astype(np.float32)
    a = from_rotvec(w)
    assert a.dtype == jnp.float32
    assert np.allclose(a, [expm(skew(v)) for v in w.astype(float)], atol=5e-7)
    assert np.allclose(np.einsum("nij,nkj->nik", a, a), np.eye(3), atol=1e-6)


def test_uniform_has_the_moments_of_the_haar_measure():
    n = 20_000
    a = np.asarray(uniform(jax.random.key(3), n), float)
    flat = a.reshape(n, 9)
    assert np.allclose(np.linalg.det(a), 1, atol=1e-5)
    assert np.abs(flat.mean(0)).max() < 5 * np.sqrt(1 / 3 / n)
    assert np.abs(flat.T @ flat / n - np.eye(9) / 3).max() < 5 * np.sqrt(1 / 5 / n)
    angle = np.asarray(geodesic(a, np.eye(3)))
    grid = np.linspace(0, np.pi, 9)[1:-1]
    share = (grid - np.sin(grid)) / np.pi  # distribution of the angle: density (1 - cos) / pi
    assert np.abs((angle[:, None] < grid).mean(0) - share).max() < 5 * np.sqrt(0.25 / n)


@pytest.mark.parametrize(("order", "count"), [(1, 576), (2, 4608), (3, 36864)])
def test_healpix_grid_is_relions_and_even(order, count):
    grid = healpix_grid(order)
    assert grid.shape == (count, 3, 3) and grid.dtype == np.float64
    step = np.pi / 3 / 2**order
    with jax.enable_x64(True):
        rot, tilt, psi = (np.asarray(angle) for angle in to_euler(grid[: 6 * 2**order]))
    assert np.allclose(np.mod(psi + 1e-9, 2 * np.pi), step * np.arange(6 * 2**order), atol=1e-8)
    assert np.ptp(rot) < 1e-9 and np.ptp(tilt) < 1e-9
    assert np.abs(grid.mean(0)).max() < 1e-12
    assert np.allclose(np.einsum("nij,nik->jk", grid, grid) / count, np.eye(3), atol=1e-12)
    angle = nearest(grid, Rotation.random(2000, random_state=0).as_matrix())
    assert angle.max() < 1.1 * step and angle.mean() > 0.4 * step
    assert nearest(grid[1:], grid[:1])[0] > 0.7 * step


def test_healpix_directions_are_equal_areas_and_nested():
    rot, tilt = healpix_directions(2)
    heights, counts = np.unique(np.round(np.cos(tilt), 12), return_counts=True)
    assert counts.tolist() == [4, 8, 12] + [16] * 9 + [12, 8, 4]
    edges = np.concatenate([[-1], -1 + 2 * np.cumsum(counts) / len(tilt)])
    assert np.all((heights > edges[:-1]) & (heights < edges[1:]))
    points = np.stack([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], 1)
    rot, tilt = healpix_directions(1)
    parents = np.stack([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], 1)
    assert np.array_equal((points @ parents.T).argmax(1), np.arange(len(points)) // 4)


def test_super_fibonacci_covers_evenly():
    count = 4608
    grid = super_fibonacci(count)
    assert np.allclose(np.linalg.det(grid), 1, atol=1e-12)
    spacing = (8 * np.pi**2 / count) ** (1 / 3)  # edge of a cube of a rotation's share of the volume [rad]
    angle = nearest(grid, Rotation.random(3000, random_state=1).as_matrix())
    assert angle.max() < 1.25 * spacing and angle.mean() < 0.6 * spacing
    assert np.abs(grid.mean(0)).max() < 2e-3


def test_bad_grids_are_refused():
    with pytest.raises(ValueError, match="order must not be negative, got -1"):
        healpix_grid(-1)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        super_fibonacci(0)
