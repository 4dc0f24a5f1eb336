"""Covariance of the maps behind the images, by least squares on second moments; its leading directions.

With d the image minus that of the mean, E d d* = A Sigma A* + noise. Two least-squares estimates of Sigma:

`ColumnSums` keep the lowest shells and take each pixel as a measurement of its nearest Fourier voxel. The least-squares
problem then falls apart into one division per pair of voxels, over the images whose slices hold both (Gilles & Singer
2025, PNAS 122, use the same sums with wider kernels for some columns). `ProjectedSums` solve the same problem exactly
in the span of given maps (their section on projected covariance). No latent needs to be Gaussian for either. The noise
is subtracted image by image in float64: the sums are far larger than what is sought.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.sparse.linalg import LinearOperator, eigsh

from hetmodels.data.batch import Batch
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.grids import Disc
from hetmodels.imaging.slices import Lattice
from hetmodels.local import centred_images
from hetmodels.observation import Observation

_FLOOR = 1e-2  # of the strongest shell: least power that a shell is believed to have
_RIDGE = 1e-8


@dataclasses.dataclass(frozen=True)
class LowBand:
    """The Fourier voxels of a map up to some shell, as real coordinates: sqrt(2) V^, real parts, then imaginary.

    Attributes:
        size: box of the maps N.
        limit: highest shell.
    """

    size: int
    limit: int

    @cached_property
    def place(self) -> np.ndarray:
        """Place of each voxel among `Ball.coordinates`' complex numbers, (voxels,)."""
        ball = Ball(self.size)
        radius = ball._radius.ravel()[ball._independent]
        return np.flatnonzero(radius <= self.limit)

    @cached_property
    def shell(self) -> np.ndarray:
        """Shell of each voxel, (voxels,)."""
        ball = Ball(self.size)
        return ball.shell.ravel()[ball._independent][self.place]

    @cached_property
    def lookup(self) -> np.ndarray:
        """Voxel of each (z, y, x) from -limit-1 to limit+1, plus 1; negative for the conjugate; 0 for none."""
        ball, edge = Ball(self.size), 2 * self.limit + 3
        z, y, x = np.unravel_index(ball._independent[self.place], ball.mask.shape)
        z, y = (np.where(v > self.size // 2, v - self.size, v) for v in (z, y))
        table, middle = np.zeros((edge, edge, edge), np.int32), self.limit + 1
        number = np.arange(1, len(x) + 1)
        table[z + middle, y + middle, x + middle] = number
        table[middle - z, middle - y, middle - x] = -number
        return table

    def maps(self, coordinates: np.ndarray) -> Array:
        """Maps from coordinates (count, 2 voxels): (count, N, N, N)."""
        ball = Ball(self.size)
        half = ball.coordinates // 2
        white = np.zeros((len(coordinates), ball.coordinates), np.float32)
        real, imaginary = np.split(coordinates, 2, axis=1)
        white[:, self.place], white[:, half + self.place] = real, imaginary
        return ball.colour(jnp.asarray(white), jnp.ones(ball.shells))

    def coordinates(self, maps: Array) -> np.ndarray:
        """Coordinates of the part of maps in the band, (count, 2 voxels); the inverse of `maps` there."""
        ball = Ball(self.size)
        half, white = ball.coordinates // 2, np.asarray(ball.whiten(maps, jnp.ones(ball.shells)), np.float64)
        return np.concatenate([white[:, self.place], white[:, half + self.place]], axis=1)


@dataclasses.dataclass(frozen=True)
class View:
    """What of the imaging is compiled in: the pixels up to a shell, and the grid of the maps."""

    observation: Observation
    lattice: Lattice
    limit: int

    @cached_property
    def pixels(self) -> np.ndarray:
        """Pixels of the disc up to the shell."""
        return np.flatnonzero(self.observation.disc.shell <= self.limit)

    @property
    def points(self) -> Any:
        """Their in-plane frequencies [1/Å]."""
        return self.observation.disc.grid(self.observation.spacing).points[self.pixels]


@partial(jax.jit, static_argnums=0)
def residuals(view: View, table: Array, noise: Array, batch: Batch) -> tuple[Array, Array, Array]:
    """Images minus the mean's, and the CTF, both over the noise's standard deviation; and slices of further maps.

    Args:
        view: the pixels.
        table: of the mean and further maps, (rows, 2 (1 + maps)).
        noise: variance relative to the reference spectrum, (groups, shells).
        batch: the particles.

    Returns:
        Complex (rows, pixels), real (rows, pixels), and complex (rows, pixels, maps) after CTF.
    """
    obs, keep = view.observation, view.pixels
    sd = jnp.sqrt(obs.pixel_variance(noise, batch.group)[:, keep])
    ctf = batch.ctf[:, keep] / sd
    cells = view.lattice.cells(batch.rotation, view.points, batch.stretch)
    slices = ctf[..., None] * view.lattice.gather(table, cells)
    return centred_images(batch, obs)[:, keep] / sd - slices[..., 0], ctf, slices[..., 1:]


class ColumnSums:
    """Sums of the voxel-pair estimate over images, in float64 on the host.

    Attributes:
        product: sum of x x^T less the noise's, (2 voxels, 2 voxels), with x = C d on each image's voxels.
        weight: sum of C^2 C^2, (voxels, voxels).
        hits: sum of C^2, (voxels,).
    """

    def __init__(self, view: View, size: int) -> None:
        self.view, self.band = view, LowBand(size, view.limit)
        count = len(self.band.place)
        self.product, self.weight = np.zeros((2 * count, 2 * count)), np.zeros((count, count))
        self.hits = np.zeros(count)

    def add(self, table: Array, noise: Array, batch: Batch) -> None:
        """Add some images; `table` is that of the mean map."""
        product, weight, own = _columns(self.view, self.band, table, noise, batch)
        self.product += np.asarray(product, np.float64)
        self.product[np.diag_indices(len(self.product))] -= np.tile(np.asarray(own, np.float64), 2)
        self.weight += np.asarray(weight, np.float64)
        self.hits += np.asarray(own, np.float64)

    def covariance(self) -> np.ndarray:
        """The estimate, each entry shrunk by its noise: an entry of Sigma is taken to be as large as the power of its
        two shells allows, and 1/weight is the variance of its measurement; (2 voxels, 2 voxels).
        """
        shells, count = self.band.shell, len(self.band.shell)
        diagonal = np.diagonal(self.product).reshape(2, count).mean(0)
        total = np.bincount(shells, diagonal) / np.maximum(np.bincount(shells, np.diagonal(self.weight)), 1e-30)
        power = np.maximum(total, _FLOOR * max(total.max(), 1e-30))[shells]
        weight = self.weight + 1 / np.outer(power, power)
        return self.product / np.tile(weight, (2, 2))

    def leading(self, count: int, mask: Array | None = None) -> Array:
        """Maps along the directions of largest variance, orthogonal, (count, N, N, N).

        Args:
            count: number of directions.
            mask: of what varies, (N, N, N): then of the variance inside it, which has less of the noise.
        """
        start, whole = np.random.default_rng(0).normal(size=len(self.product)), self.covariance()
        if mask is None:
            _, vectors = eigsh(whole, count, which="LA", v0=start)
            return self.band.maps(vectors.T[::-1])

        def inside(v: np.ndarray) -> np.ndarray:
            return self.band.coordinates(self.band.maps(np.ravel(v)[None]) * mask)[0]

        masked = LinearOperator(whole.shape, matvec=lambda v: inside(whole @ inside(v)), dtype=np.float64)
        _, vectors = eigsh(masked, count, which="LA", v0=start, tol=1e-3)
        return self.band.maps(vectors.T[::-1])


@partial(jax.jit, static_argnums=(0, 1))
def _columns(view: View, band: LowBand, table: Array, noise: Array, batch: Batch) -> tuple[Array, Array, Array]:
    """What some images add to the products, to the weights, and to the noise on the products' diagonal."""
    d, ctf, _ = residuals(view, table, noise, batch)
    rows = batch.rotation[:, :2, :]
    points = jnp.einsum("mi,bij->bmj", view.points, batch.stretch, precision=jax.lax.Precision.HIGHEST)
    xi = jnp.einsum("bmi,bij->bmj", points, rows, precision=jax.lax.Precision.HIGHEST)
    middle = view.limit + 1
    at = jnp.rint(xi * band.size * view.observation.spacing).astype(jnp.int32) + middle
    at = jnp.clip(at, 0, 2 * middle)
    found = jnp.asarray(band.lookup)[at[..., 2], at[..., 1], at[..., 0]]
    inside = (found != 0) * batch.weight[:, None]
    d = jnp.where(found < 0, jnp.conj(d), d) * inside
    number, each = jnp.abs(found) - 1, jnp.arange(len(found))[:, None]
    count = len(band.place)

    def gathered(values: Array) -> Array:
        return jnp.zeros((len(found), count), values.dtype).at[each, number].add(values)

    x = jnp.sqrt(2.0) * jnp.concatenate([gathered(ctf * d.real), gathered(ctf * d.imag)], axis=1)
    c = gathered(ctf**2 * inside)
    product = jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)
    return product, jnp.matmul(c.T, c, precision=jax.lax.Precision.HIGHEST), c.sum(0)


class ProjectedSums:
    """Least squares for the covariance S of coefficients of given maps: sum G S G = sum (h h^T - 2 G) / 4 per image.

    h = 2 Re <d, x_l> and G = Re <x_l, x_m> over the noise variance, so that E h h^T = 4 G S G + 2 G.
    """

    def __init__(self, view: View, count: int) -> None:
        self.view, self.count = view, count
        self.pairs = np.array([(i, j) for i in range(count) for j in range(i, count)]).T
        self.left = np.zeros((self.pairs.shape[1],) * 2)
        self.right = np.zeros((count, count))

    def add(self, table: Array, noise: Array, batch: Batch) -> None:
        """Add some images; `table` is that of the mean map and the maps."""
        h, gram = (np.asarray(v, np.float64) for v in _projections(self.view, table, noise, batch))
        weight = np.asarray(batch.weight, np.float64)
        self.right += 0.25 * (np.einsum("b,bi,bj->ij", weight, h, h) - 2 * np.einsum("b,bij->ij", weight, gram))
        i, j = self.pairs
        # G S G at (i, j) for the symmetric unit matrix of the pair (k, l)
        straight = gram[:, i[:, None], i] * gram[:, j[:, None], j]
        crossed = gram[:, i[:, None], j] * gram[:, j[:, None], i]
        self.left += np.einsum("b,bpq->pq", weight, straight + np.where(i == j, 0.0, 1.0) * crossed)

    def solve(self) -> np.ndarray:
        """The estimate of S, symmetric, (count, count)."""
        i, j = self.pairs
        ridge = _RIDGE * np.trace(self.left) / len(self.left) * np.eye(len(self.left))
        packed = np.linalg.solve(self.left + ridge, self.right[i, j])
        full = np.zeros((self.count, self.count))
        full[i, j] = packed
        full[j, i] = packed
        return full


@partial(jax.jit, static_argnums=0)
def _projections(view: View, table: Array, noise: Array, batch: Batch) -> tuple[Array, Array]:
    d, _, x = residuals(view, table, noise, batch)
    exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    h = 2 * (exact("bm,bml->bl", d.real, x.real) + exact("bm,bml->bl", d.imag, x.imag))
    return h, exact("bml,bmn->bln", x.real, x.real) + exact("bml,bmn->bln", x.imag, x.imag)


def orthonormal_to(mean: Array, maps: Array) -> Array:
    """Maps made orthonormal among themselves and to the mean map: a change of contrast is no motion."""
    flat = np.concatenate([np.asarray(mean, np.float64)[None], np.asarray(maps, np.float64)]).reshape(len(maps) + 1, -1)
    basis = np.linalg.qr(flat.T)[0].T[1:]
    return jnp.asarray(basis.reshape(maps.shape), jnp.float32)


def principal(maps: Array, covariance: np.ndarray, dims: int) -> Array:
    """The `dims` strongest components of an orthonormal set of maps with this covariance, times their deviation."""
    values, vectors = np.linalg.eigh(covariance)
    scale = np.sqrt(np.maximum(values, 0))[::-1][:dims]
    return jnp.tensordot(jnp.asarray((vectors[:, ::-1][:, :dims] * scale).T, jnp.float32), maps, 1)


def low_shell(disc: Disc, spacing: float, resolution: float) -> int:
    """Shell of a resolution [Å], but no more than 8, where all pairs of voxels still fit in memory, and at least 3."""
    return int(np.clip(disc.size * spacing / resolution, 3, min(8, disc.shells - 1)))
