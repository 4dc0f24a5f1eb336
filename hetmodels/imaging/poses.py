"""Nested grids over poses: cells of SO(3) that split in eight, cells of the plane of shifts that split in four.

A grid is a set of cells per image, the product of some rotations and some shifts, that is refined where the posterior
lies. Two kinds of rotation grid have the same operations: `Sphere`, HEALPix directions times angles in the plane
(Górski et al. 2005), all of SO(3) in cells of equal volume; and `Tangent`, a cubic lattice of small rotations about a
given one.
"""

from functools import lru_cache, partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.imaging.rotations import from_rotvec, geodesic, healpix_directions
from hetmodels.imaging.symmetry import elements, log_share
from hetmodels.tree import pytree, static

_HALVES = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)]) / 4
_QUARTERS = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) / 4


class RotationGrid(Protocol):
    """Cells of SO(3), numbered."""

    @property
    def order(self) -> int:
        """How fine: steps of 60 degrees / 2^order."""

    def rotation(self, code: Array, centre: Array) -> Array:
        """Centres of cells: codes (rows, cells) and a rotation per row (rows, 3, 3) -> (rows, cells, 3, 3)."""

    def children(self, code: Array) -> Array:
        """The eight cells of the next finer grid that make up each cell, (rows, cells) -> (rows, 8 cells)."""

    def finer(self) -> "RotationGrid":
        """The grid of the children."""

    @property
    def log_volume(self) -> float:
        """Log share of SO(3) in a cell."""


def step_of(order: int) -> float:
    """Angle between neighbours of a grid [rad]: 60 degrees / 2^order, as RELION counts orders."""
    return np.pi / 3 / 2**order


def nearest_order(angle: float) -> int:
    """The order, 0 at least, whose step is nearest to an angle [rad]."""
    return max(0, round(np.log2(np.pi / 3 / angle)))


def finest_order(limit: int) -> int:
    """The order whose step moves the last shell of a band by one Fourier pixel."""
    return max(1, round(np.log2(np.pi / 3 * limit)))


@pytree
class Sphere:
    """All of SO(3): 12 * 4^order directions times 6 * 2^order angles in the plane, turned by `centre` on the right.

    The angles lie half a step off zero, so that children lie about their parent.

    Attributes:
        directions: Ry(tilt) Rz(rot) of the directions in nested order, (12 * 4^order, 3, 3).
        order: HEALPix order.
    """

    directions: Array
    order: int = static()

    @staticmethod
    def of(order: int) -> "Sphere":
        """The grid of an order."""
        return Sphere(jnp.asarray(_directions(order)), order)

    @property
    def steps(self) -> int:
        """Angles in the plane."""
        return 6 * 2**self.order

    @property
    def cells(self) -> int:
        """Number of cells."""
        return len(self.directions) * self.steps

    @property
    def log_volume(self) -> float:
        """See `RotationGrid`."""
        return -float(np.log(72 * 8**self.order))

    def rotation(self, code: Array, centre: Array) -> Array:
        """See `RotationGrid`."""
        d = self.directions[code // self.steps].astype(centre.dtype)
        psi = (2 * np.pi / self.steps) * (code % self.steps + 0.5).astype(centre.dtype)
        c, s = jnp.cos(psi)[..., None], jnp.sin(psi)[..., None]
        turned = jnp.stack([c * d[..., 0, :] + s * d[..., 1, :], c * d[..., 1, :] - s * d[..., 0, :], d[..., 2, :]], -2)
        return _compose(turned, centre)

    def children(self, code: Array) -> Array:
        """See `RotationGrid`."""
        direction, angle = code // self.steps, code % self.steps
        direction = 4 * direction[..., None, None] + np.arange(4)[:, None]
        angle = 2 * angle[..., None, None] + np.arange(2)
        return (direction * (2 * self.steps) + angle).reshape(*code.shape[:-1], -1)

    def finer(self) -> "Sphere":
        """See `RotationGrid`."""
        return Sphere.of(self.order + 1)


@pytree
class Tangent:
    """Small rotations about a given one, exp(w) centre: w on a cubic lattice inside a ball.

    Attributes:
        vectors: w of every cell [rad], (cells, 3).
        order: steps are 60 degrees / 2^order.
    """

    vectors: Array
    order: int = static()

    @staticmethod
    def of(order: int, reach: float) -> "Tangent":
        """The lattice inside a ball.

        Args:
            order: see above.
            reach: radius of the ball in steps.
        """
        line = np.arange(-int(reach), int(reach) + 1)
        lattice = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
        return Tangent(jnp.asarray(lattice[(lattice**2).sum(1) <= reach**2] * step_of(order), jnp.float32), order)

    @property
    def cells(self) -> int:
        """Number of cells."""
        return len(self.vectors)

    @property
    def log_volume(self) -> float:
        """See `RotationGrid`; near the centre a cell of exponential coordinates has the volume of a cube."""
        return 3 * float(np.log(step_of(self.order))) - float(np.log(8 * np.pi**2))

    def rotation(self, code: Array, centre: Array) -> Array:
        """See `RotationGrid`."""
        return _compose(from_rotvec(self.vectors[code].astype(centre.dtype)), centre)

    def children(self, code: Array) -> Array:
        """See `RotationGrid`."""
        return (8 * code[..., None] + np.arange(8)).reshape(*code.shape[:-1], -1)

    def finer(self) -> "Tangent":
        """See `RotationGrid`."""
        split = self.vectors[:, None, :] + _HALVES.astype(self.vectors.dtype) * step_of(self.order)
        return Tangent(split.reshape(-1, 3), self.order + 1)


def _compose(left: Array, centre: Array) -> Array:
    """(rows, cells, 3, 3) times (rows, 3, 3)."""
    return jnp.einsum("...cij,...jk->...cik", left, centre, precision=jax.lax.Precision.HIGHEST)


@lru_cache(maxsize=8)
def _directions(order: int) -> np.ndarray:
    rot, tilt = healpix_directions(order)
    cr, sr, ct, st, zero = np.cos(rot), np.sin(rot), np.cos(tilt), np.sin(tilt), np.zeros(len(rot))
    return np.stack([ct * cr, ct * sr, -st, -sr, cr, zero, st * cr, st * sr, ct], -1).reshape(-1, 3, 3)


def asymmetric_cells(grid: Sphere, turn: Array, prior: "PosePrior", block: int) -> np.ndarray:
    """Numbers of the cells that a prior looks at, filled up to a multiple of `block` by those nearest to them.

    Args:
        grid: the grid.
        turn: what it is turned by, (1, 3, 3).
        prior: says the symmetry.
        block: so that few different numbers of cells occur.
    """
    if len(elements(prior.symmetry)) == 1:
        return np.arange(grid.cells)
    share = prior.log_rotation(grid.rotation(jnp.arange(grid.cells)[None], turn), grid)[0]
    order = np.argsort(~np.isfinite(np.asarray(share)), kind="stable")
    count = int(np.isfinite(np.asarray(share)).sum())
    return order[: min(grid.cells, -(-count // block) * block)]


def shift_lattice(radius: float, step: float) -> np.ndarray:
    """Shifts on a square lattice inside a circle about zero, float64 (shifts, 2), in the unit of the arguments."""
    line = np.arange(-int(radius / step + 1e-9), int(radius / step + 1e-9) + 1)
    lattice = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    return lattice[(lattice**2).sum(1) * step**2 <= radius**2 * (1 + 1e-9)] * step


def shift_children(shift: Array, step: float) -> Array:
    """The four quarters of each cell of the given step: (rows, shifts, 2) -> (rows, 4 shifts, 2)."""
    split = shift[..., None, :] + (_QUARTERS * step).astype(shift.dtype)
    return split.reshape(*shift.shape[:-2], -1, 2)


@pytree
class PosePrior:
    """Density of poses: uniform on SO(3) or Gaussian about a rotation per image, and Gaussian shifts.

    Attributes:
        rotation: centre of the rotations, (rows, 3, 3); not looked at where `rotation_sd` is infinite.
        shift: centre of the shifts [Å], (rows, 2).
        rotation_sd: spread per axis [rad]; infinite for uniform rotations.
        shift_sd: spread per axis [Å].
        symmetry: point group that makes rotations alike; where they are uniform, one of each is looked at.
        margin: by how much more than the smallest angle it may turn, see `symmetry.log_share`; infinite if the
            rotations looked at are one of each anyway.
        directions: log density of viewing directions relative to an even one, in the HEALPix cells of an order,
            the same for every image, (rows, 12 * 4^order); None if it is even. Only where rotations have no centre.
    """

    rotation: Array
    shift: Array
    rotation_sd: float = static()
    shift_sd: float = static()
    symmetry: str = static(default="C1")
    margin: float = static(default=np.inf)
    directions: Array | None = None

    def log_rotation(self, rotation: Array, grid: RotationGrid) -> Array:
        """Log prior mass of cells, (rows, cells), from their centres (rows, cells, 3, 3)."""
        order, density = len(elements(self.symmetry)), jnp.zeros(rotation.shape[:-2], rotation.dtype)
        if self.directions is not None:
            cells = direction_cells(rotation, self.directions.shape[1])
            density = jnp.take_along_axis(self.directions[: len(rotation)], cells, axis=1)
        if np.isinf(self.rotation_sd) and order > 1 and np.isfinite(self.margin):
            return grid.log_volume + density + log_share(rotation, self.symmetry, self.margin)
        if np.isinf(self.rotation_sd):
            return jnp.full(rotation.shape[:-2], grid.log_volume + np.log(order), rotation.dtype) + density
        angle = geodesic(rotation, self.rotation[:, None])
        peak = np.log(8 * np.pi**2) - 1.5 * np.log(2 * np.pi * self.rotation_sd**2)
        return grid.log_volume + peak - 0.5 * (angle / self.rotation_sd) ** 2

    def log_shift(self, shift: Array, step: float) -> Array:
        """Log prior mass of square cells of edge `step` about shifts (rows, shifts, 2): (rows, shifts)."""
        square = jnp.sum((shift - self.shift[:, None]) ** 2, -1)
        return -0.5 * square / self.shift_sd**2 + np.log(step**2 / (2 * np.pi * self.shift_sd**2))


def direction_cells(rotation: Array, cells: int) -> Array:
    """The HEALPix cell, out of 12 * 4^order, whose centre is nearest to the viewing direction, (…, 3, 3) -> (…)."""
    order = round(np.log2(cells / 12) / 2)
    centres = jnp.asarray(_directions(order)[:, 2], rotation.dtype)
    near = jnp.einsum("...j,cj->...c", rotation[..., 2, :], centres, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(near, axis=-1)


def direction_density(rotation: Array, weight: Array, symmetry: str, counts: float, order: int = 1) -> Array:
    """Log density of viewing directions relative to an even one: the mode under a Dirichlet prior, (12 * 4^order,).

    Args:
        rotation: of some images, (rows, K, 3, 3).
        weight: posterior mass, (rows, K).
        symmetry: point group; a pose counts for all alike.
        counts: of the prior, per cell, beyond 1.
        order: HEALPix order of the cells.
    """
    group, cells = elements(symmetry), 12 * 4**order
    total = jnp.full(cells, float(counts))
    for element in group:
        turned = jnp.matmul(rotation, element.astype(rotation.dtype), precision=jax.lax.Precision.HIGHEST)
        total = total.at[direction_cells(turned, cells)].add(weight / len(group))
    return jnp.log(total / total.mean())


@pytree
class Support:
    """A few poses of each image: what the sum over its poses is taken over.

    Attributes:
        rotation: (rows, K, 3, 3).
        shift: content shifts [Å], (rows, K, 2).
        log_prior: log prior mass of their cells, minus infinity for places that are empty, (rows, K).
    """

    rotation: Array
    shift: Array
    log_prior: Array


def mode(rotation: Array, shift: Array, weight: Array) -> tuple[Array, Array]:
    """The heaviest of some poses, (rows, 3, 3) and (rows, 2), from (rows, poses, …)."""
    best = jnp.argmax(weight, axis=1)
    pick = partial(jnp.take_along_axis, axis=1)
    return pick(rotation, best[:, None, None, None])[:, 0], pick(shift, best[:, None, None])[:, 0]
