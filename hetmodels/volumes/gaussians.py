"""A density made of isotropic Gaussians: atoms, beads or pseudo-atoms, with its exact Fourier transform."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.imaging.grids import Grid
from hetmodels.tree import pytree

CHUNK = 256  # Gaussians per step of the sums below
HIGHEST = jax.lax.Precision.HIGHEST


@pytree
class Gaussians:
    """The density rho(r) = sum_j w_j N(r; c_j, s_j^2 I) in 1/Å^3, so that a weight is the integral of its Gaussian.

    Its slice in a box of D pixels of a Å is the transform of rho over D a^3, which is the orthonormal transform of
    the z-sum of rho sampled on that box.

    Attributes:
        centres: positions (x, y, z) about the box centre [Å], (n, 3).
        weights: integrals, (n,).
        widths: standard deviations [Å], (n,).
    """

    centres: Array
    weights: Array
    widths: Array

    def project(self, rotation: Array, grid: Grid) -> Array:
        """Exact slice at the grid's frequencies, complex (pixels,); see `Volume`.

        On a lattice each Gaussian is a product of two axes, and the slice a product of matrices.
        """
        seen = jnp.matmul(self.centres, rotation[:2].T, precision=HIGHEST)
        found = _anywhere(self, seen, grid.points) if grid.lattice is None else _by_axes(self, seen, grid)
        return found / (grid.size * grid.spacing**3)

    def density(self, size: int, spacing: float) -> Array:
        """Voxels [z, y, x] of the density in 1/Å^3, band-limited to |k| <= (size-1)//2 along each axis.

        The band limit makes the law of `Volume` exact for any width. For widths of a voxel or more the values are
        those of rho itself; narrower Gaussians are seen as a perfect detector of this spacing would show them.
        """
        waves = np.arange(1, (size - 1) // 2 + 1)
        phase = 2 * np.pi * waves[:, None] * (np.arange(size) - size // 2) / size
        basis = np.concatenate([np.ones((1, size)), 2 * np.cos(phase), 2 * np.sin(phase)]) / (size * spacing)
        dtype = jnp.result_type(self.centres, self.weights, self.widths)

        def add(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
            centres, weights, widths = part
            angle = 2 * jnp.pi * centres[..., None] * (waves / (size * spacing)).astype(dtype)
            decay = jnp.exp(-2 * (jnp.pi * widths[:, None, None] * (waves / (size * spacing)).astype(dtype)) ** 2)
            columns = [jnp.ones_like(angle[..., :1]), decay * jnp.cos(angle), decay * jnp.sin(angle)]
            line = jnp.matmul(jnp.concatenate(columns, axis=-1), jnp.asarray(basis, dtype), precision=HIGHEST)
            plane = line[:, 1, :, None] * line[:, 0, None, :]
            return total + jnp.einsum("nz,nyx->zyx", weights[:, None] * line[:, 2], plane, precision=HIGHEST), None

        parts = jax.tree.map(_chunked, (self.centres, self.weights, self.widths))
        total, _ = jax.lax.scan(jax.checkpoint(add), jnp.zeros((size,) * 3, dtype), parts)
        return total


def _anywhere(beads: Gaussians, seen: Array, points: Array) -> Array:
    """Transform at any frequencies, one exponential per bead and pixel, complex (pixels,)."""
    decay = -2 * jnp.pi**2 * jnp.sum(points**2, axis=1)

    def add(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        xy, weights, widths = part
        cycles = jnp.matmul(xy, points.T, precision=HIGHEST)
        angle = 2 * jnp.pi * (cycles - jax.lax.stop_gradient(jnp.round(cycles)))
        size = weights[:, None] * jnp.exp(widths[:, None] ** 2 * decay)
        return total + jax.lax.complex((size * jnp.cos(angle)).sum(0), -(size * jnp.sin(angle)).sum(0)), None

    dtype = jnp.result_type(seen, points, beads.weights, beads.widths)
    return _over_chunks(add, jnp.zeros(len(points), jnp.result_type(dtype, jnp.complex64)), beads, seen, dtype)


def _by_axes(beads: Gaussians, seen: Array, grid: Grid) -> Array:
    """Transform on a lattice: waves along x times waves along y, summed over beads by one matrix product."""
    assert grid.lattice is not None
    index, waves = grid.lattice.index, grid.lattice.limit + 1
    first = [int(np.flatnonzero((index == unit).all(1))[0]) for unit in ((1, 0), (0, 1))]
    steps = jnp.stack([grid.points[first[0], 0], grid.points[first[1], 1]])
    frequency = steps[:, None] * np.arange(waves, dtype=np.float32)

    def add(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        xy, weights, widths = part
        cycles = xy[:, :, None] * frequency
        angle = 2 * jnp.pi * (cycles - jax.lax.stop_gradient(jnp.round(cycles)))
        decay = jnp.exp(-2 * (jnp.pi * widths[:, None, None] * frequency) ** 2)
        x, y = jnp.moveaxis(jnp.concatenate([decay * jnp.cos(angle), decay * jnp.sin(angle)], axis=2), 1, 0)
        return total + jnp.matmul((weights[:, None] * x).T, y, precision=HIGHEST), None

    dtype = jnp.result_type(seen, frequency, beads.weights, beads.widths)
    products = _over_chunks(add, jnp.zeros((2 * waves, 2 * waves), dtype), beads, seen, dtype)
    kx, ky, sign = index[:, 0], np.abs(index[:, 1]), np.sign(index[:, 1])
    cosine = products[kx, ky] - sign * products[waves + kx, waves + ky]
    sine = products[waves + kx, ky] + sign * products[kx, waves + ky]
    return jax.lax.complex(cosine, -sine)


def _over_chunks(add: Callable, start: Array, beads: Gaussians, seen: Array, dtype: jnp.dtype) -> Array:
    """The sum over beads, a chunk at a time."""
    parts = jax.tree.map(_chunked, tuple(each.astype(dtype) for each in (seen, beads.weights, beads.widths)))
    total, _ = jax.lax.scan(jax.checkpoint(add), start, parts)
    return total


def _chunked(values: Array) -> Array:
    """(n, …) -> (chunks, CHUNK, …), filled up with zeros (Gaussians of weight zero)."""
    values = jnp.asarray(values)
    chunk = min(CHUNK, max(len(values), 1))
    chunks = -(-len(values) // chunk)
    values = jnp.pad(values, [(0, chunks * chunk - len(values))] + [(0, 0)] * (values.ndim - 1))
    return values.reshape(chunks, chunk, *values.shape[1:])
