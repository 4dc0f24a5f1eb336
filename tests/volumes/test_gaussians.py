"""Laws of the Gaussian density: closed forms, the projection law, rotation, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetmodels.imaging.grids import Disc, Grid
from hetmodels.volumes.gaussians import CHUNK, Gaussians
from hetmodels.volumes.protocol import Volume


def blobs(n: int, width: float, seed: int = 0, radius: float = 20.0) -> Gaussians:
    rng = np.random.default_rng(seed)
    widths = width * rng.uniform(1.0, 1.3, n)
    return Gaussians(
        jnp.asarray(rng.uniform(-radius, radius, (n, 3))), jnp.asarray(rng.uniform(0.5, 2, n)), jnp.asarray(widths)
    )


def exact_grid(size: int, spacing: float, lattice: bool = False) -> Grid:
    disc = Disc(size)
    return Grid(jnp.asarray(disc.index / (size * spacing)), size, spacing, disc if lattice else None)


def rotation(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def test_is_a_volume() -> None:
    assert isinstance(blobs(3, 5.0), Volume)


@pytest.mark.parametrize(("size", "spacing", "width"), [(16, 4.0, 5.0), (15, 4.0, 5.0), (16, 4.0, 0.7)])
def test_projection_law(size: int, spacing: float, width: float) -> None:
    with jax.enable_x64(True):
        volume = blobs(7, width)
        image = volume.density(size, spacing).sum(0)
        slice_ = volume.project(jnp.eye(3), exact_grid(size, spacing))
        np.testing.assert_allclose(slice_, Disc(size).forward(image), atol=1e-12 * float(jnp.abs(slice_).max()) * size)


def test_density_is_the_closed_form_and_knows_nothing_of_the_box() -> None:
    with jax.enable_x64(True):
        volume = blobs(5, 6.0, radius=10.0)
        for size, spacing in [(48, 3.0), (57, 2.5)]:
            x = (np.arange(size) - size // 2) * spacing
            r = np.stack(np.meshgrid(x, x, x, indexing="ij")[::-1], axis=-1)
            expected = np.zeros((size,) * 3)
            for c, w, s in zip(*map(np.asarray, (volume.centres, volume.weights, volume.widths)), strict=True):
                expected += w * np.exp(-((r - c) ** 2).sum(-1) / (2 * s**2)) / (2 * np.pi * s**2) ** 1.5
            np.testing.assert_allclose(volume.density(size, spacing), expected, atol=1e-6 * expected.max())
            np.testing.assert_allclose(expected.sum() * spacing**3, np.asarray(volume.weights).sum(), rtol=1e-6)


def test_rotation_convention_point_seen_at_rotated_xy() -> None:
    size, spacing, a = 32, 2.0, rotation(3)
    point = np.array([9.0, -5.0, 12.0])
    volume = Gaussians(jnp.asarray(point[None]), jnp.ones(1), jnp.full(1, 3.0))
    disc = Disc(size)
    image = np.asarray(disc.inverse(volume.project(jnp.asarray(a), disc.grid(spacing))))
    y, x = (np.mgrid[:size, :size] - size // 2) * spacing
    seen = a @ point
    expected = np.exp(-((x - seen[0]) ** 2 + (y - seen[1]) ** 2) / 18) / (18 * np.pi * spacing)
    np.testing.assert_allclose(image, expected - expected.mean(), atol=1e-3 * expected.max())


def test_rotating_the_view_is_rotating_the_beads_and_chunks_do_not_matter() -> None:
    with jax.enable_x64(True):
        volume, a = blobs(CHUNK + 3, 4.0), rotation(1)
        grid = exact_grid(12, 5.0)
        turned = Gaussians(volume.centres @ a.T, volume.weights, volume.widths)
        whole = volume.project(jnp.asarray(a), grid)
        np.testing.assert_allclose(whole, turned.project(jnp.eye(3), grid), atol=1e-14)
        head, tail = (jax.tree.map(lambda v, p=p: v[p], volume) for p in (slice(0, 100), slice(100, None)))
        np.testing.assert_allclose(
            whole, sum(v.project(jnp.asarray(a), grid) for v in (head, tail)), atol=1e-13 * float(jnp.abs(whole).max())
        )


@pytest.mark.parametrize("stretch", [(1.0, 1.0), (1.02, 0.97)])
def test_by_axes_is_the_sum_over_pixels(stretch: tuple[float, float]) -> None:
    with jax.enable_x64(True):
        volume, a = blobs(CHUNK + 3, 4.0, radius=60.0), jnp.asarray(rotation(4))
        grid, lattice = (exact_grid(15, 5.0, lattice=choice) for choice in (False, True))
        slices = [
            volume.project(a, dataclasses.replace(g, points=g.points * jnp.asarray(stretch))) for g in (grid, lattice)
        ]
        np.testing.assert_allclose(slices[1], slices[0], atol=1e-12 * float(jnp.abs(slices[0]).max()))


@pytest.mark.parametrize("what", ["project", "project by axes", "density"])
def test_gradient_is_the_finite_difference(what: str) -> None:
    with jax.enable_x64(True):
        volume, grid, a = blobs(4, 5.0), exact_grid(8, 8.0, lattice="axes" in what), jnp.asarray(rotation(2))

        def value(v: Gaussians, turn: jax.Array) -> jax.Array:
            if what != "density":
                return (jnp.abs(v.project(turn, grid) - 1e-4) ** 2).sum() * 1e6
            return (v.density(8, 8.0) ** 2).sum() * 1e6

        gradient = jax.grad(value, argnums=(0, 1))(volume, a)
        rng = np.random.default_rng(5)
        step = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), (volume, a))
        h = 1e-6
        up, down = (jax.tree.map(lambda x, d, s=s: x + s * h * d, (volume, a), step) for s in (1, -1))
        slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(step), strict=True))
        np.testing.assert_allclose(slope, (value(*up) - value(*down)) / (2 * h), rtol=1e-6)


def test_float32_is_close_to_float64() -> None:
    volume = blobs(300, 3.0, radius=100.0)
    single = np.asarray(volume.project(jnp.eye(3), Disc(64).grid(4.0)))
    with jax.enable_x64(True):
        double = np.asarray(blobs(300, 3.0, radius=100.0).project(jnp.eye(3), exact_grid(64, 4.0)))
    np.testing.assert_allclose(single, double, atol=2e-5 * np.abs(double).max())
