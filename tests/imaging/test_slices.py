"""Laws of slice extraction: exact adjoint, accuracy on an analytic density, Hermitian symmetry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetmodels.imaging.grids import Disc
from hetmodels.imaging.slices import Lattice

ORDERS = [(0, 1), (0, 2), (1, 1), (1, 2), (3, 1), (3, 2)]


def rotations(rng, n):
    q, _ = np.linalg.qr(rng.normal(size=(n, 3, 3)))
    return q * np.linalg.det(q)[:, None, None]


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(("order", "padding"), ORDERS)
def test_adjoint_is_exact(order, padding, size):
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        lattice, disc = Lattice(size, 2.0, padding, order), Disc(size)
        points = jnp.asarray(disc.index / (size * 2.0))
        cells = lattice.cells(jnp.asarray(rotations(rng, 5)), points)
        x = jnp.asarray(rng.normal(size=(1, size, size, size)))
        y = jnp.asarray(rng.normal(size=(5, disc.pixels)) + 1j * rng.normal(size=(5, disc.pixels)))
        forward = lattice.gather(lattice.table(x), cells)[..., 0]
        flat = lattice.scatter(jnp.zeros(2 * lattice.rows), cells, [y.real, y.imag * cells.sign])
        back = lattice.adjoint(flat.reshape(2, -1).T)
        left, right = jnp.sum(jnp.conj(forward) * y).real, jnp.sum(x * back)
        assert abs(left - right) < 1e-10 * abs(left)
        _, vjp = jax.vjp(lambda v: lattice.gather(lattice.table(v), cells)[..., 0], x)
        assert np.allclose(vjp(jnp.conj(y))[0], back, rtol=0, atol=1e-10 * np.abs(back).max())


def test_dot_test_in_float32():
    rng = np.random.default_rng(2)
    lattice, disc = Lattice(16, 1.0), Disc(16)
    cells = lattice.cells(jnp.asarray(rotations(rng, 4), jnp.float32), disc.grid(1.0).points)
    x = jnp.asarray(rng.normal(size=(1, 16, 16, 16)), jnp.float32)
    forward = lattice.gather(lattice.table(x), cells)[..., 0]
    flat = lattice.scatter(jnp.zeros(2 * lattice.rows), cells, [forward.real, forward.imag * cells.sign])
    left, right = jnp.sum(jnp.abs(forward) ** 2), jnp.sum(x * lattice.adjoint(flat.reshape(2, -1).T))
    assert abs(left - right) < 1e-5 * left


def gaussians(rng, size, spacing, n=60):
    direction = rng.normal(size=(n, 3))
    radius = 0.28 * size * spacing * rng.uniform(size=(n, 1)) ** (1 / 3)
    centres = direction / np.linalg.norm(direction, axis=1, keepdims=True) * radius
    return centres, rng.uniform(0.5, 1.5, n), rng.uniform(1.2, 2.5, n) * spacing


def analytic_slice(density, rotation, index, size, spacing):
    """Transform of sampled Gaussians: (1/N) sum_r V(r) exp(-2 pi i xi.r/N) with V normalised per voxel."""
    centres, weights, widths = density
    xi = (index / (size * spacing)) @ rotation[:2]
    phase = np.exp(-2j * np.pi * xi @ centres.T)
    return (phase * weights * np.exp(-2 * np.pi**2 * (xi**2).sum(1)[:, None] * widths**2)).sum(1) / size


def sampled(density, size, spacing):
    centres, weights, widths = density
    x = (np.arange(size) - size // 2) * spacing
    total = np.zeros((size, size, size))
    for c, w, s in zip(centres, weights, widths, strict=True):
        line = [np.exp(-((x - c[i]) ** 2) / (2 * s**2)) / (np.sqrt(2 * np.pi) * s) * spacing for i in range(3)]
        total += w * line[2][:, None, None] * line[1][:, None] * line[0]
    return total


@pytest.mark.parametrize(
    ("order", "padding", "bound"), [(1, 1, 0.103), (1, 2, 0.021), (1, 3, 0.009), (3, 1, 0.0074), (3, 2, 0.0019)]
)
def test_projection_error_of_sixty_gaussians(order, padding, bound):
    rng = np.random.default_rng(3)
    size, spacing = 32, 3.0
    density = gaussians(rng, size, spacing)
    disc, lattice = Disc(size), Lattice(size, spacing, padding, order)
    rotation = rotations(rng, 8)
    cells = lattice.cells(jnp.asarray(rotation, jnp.float32), disc.grid(spacing).points)
    table = lattice.table(jnp.asarray(sampled(density, size, spacing)[None], jnp.float32))
    slices = np.asarray(lattice.gather(table, cells)[..., 0])
    exact = np.stack([analytic_slice(density, r, disc.index, size, spacing) for r in rotation])
    assert np.linalg.norm(slices - exact) / np.linalg.norm(exact) <= 1.2 * bound


def test_identity_slice_is_the_transform_of_the_projection():
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        for size in (8, 9):
            values = jnp.asarray(rng.normal(size=(1, size, size, size)))
            disc, lattice = Disc(size), Lattice(size, 1.5, 1, 0)
            plain = lattice.table(values / lattice.deapodisation)
            cells = lattice.cells(jnp.eye(3)[None], jnp.asarray(disc.index / (size * 1.5)))
            assert np.allclose(lattice.gather(plain, cells)[0, :, 0], disc.forward(values[0].sum(0)), atol=1e-6)


def test_stretch_scales_frequencies():
    lattice, disc = Lattice(16, 2.0), Disc(16, 5)
    rotation = jnp.asarray(rotations(np.random.default_rng(5), 3), jnp.float32)
    points = disc.grid(2.0).points
    stretched = lattice.cells(rotation, points, jnp.broadcast_to(1.2 * jnp.eye(2), (3, 2, 2)))
    direct = lattice.cells(rotation, 1.2 * points)
    assert np.allclose(stretched.fraction + 0.0, direct.fraction, atol=1e-4)
