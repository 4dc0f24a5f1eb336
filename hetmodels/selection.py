"""Which cells of a pose grid to go on with: the smallest sets that hold the posterior, and what they leave aside."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.imaging.poses import PosePrior, RotationGrid, Support, direction_density, shift_children
from hetmodels.tree import pytree


@pytree
class Candidates:
    """The heaviest poses of some images, numpy.

    Attributes:
        rotation: (rows, K, 3, 3), heaviest first.
        shift: content shifts [Å], (rows, K, 2).
        weight: posterior mass with the latents integrated, (rows, K); 0 for poses beyond the mass asked for. The
            weights of a row and its `discarded` add up to 1.
        log_evidence: log p(y | maps) - log p(y | noise only), poses and latents integrated over the cells scored at
            the last level, (rows,); a lower bound where cells were set aside before.
        discarded: posterior mass set aside, (rows,). The level that sets cells aside expects it from what it sees: a
            lower band, the centres of its cells, and scores at a temperature at which that is at least, on average
            over images, what these cells turn out to hold once the last level scores them.
        order: of the last grid of rotations, (rows,).
        log_prior: log prior mass of the cells of these poses, (rows, K); minus infinity where there is none.
    """

    rotation: Any
    shift: Any
    weight: Any
    log_evidence: Any
    discarded: Any
    order: Any
    log_prior: Any


@pytree
class PoseTable:
    """The best poses found so far of every particle of a set, numpy, heaviest first.

    Attributes:
        rotation: (N, K, 3, 3).
        shift: content shifts [Å], (N, K, 2).
        weight: posterior mass, (N, K); all 0 for particles not searched yet.
        log_prior: log prior mass of the cells, (N, K); minus infinity where there is none.
        discarded: posterior mass that the last search set aside, (N,).
        order: of the last grid of rotations, (N,).
        levels: how often cells of the first grid are split.
        limit: band that is searched with, in Fourier pixels.
        shell: best resolution so far, in Fourier pixels.
        waited: passes without a better one.
        directions: learned log density of viewing directions, see `PosePrior`; None where it is even.
    """

    rotation: Any
    shift: Any
    weight: Any
    log_prior: Any
    discarded: Any
    order: Any
    levels: Any
    limit: Any
    shell: Any
    waited: Any
    directions: Any = None

    @staticmethod
    def empty(problem: Any, top: int, levels: int) -> "PoseTable":
        """A table of `top` poses for each particle of a problem, to be searched with the full band."""
        rows, limit = len(problem.particles), problem.observation.disc.limit
        rotation, shift = np.zeros((rows, top, 3, 3), np.float32), np.zeros((rows, top, 2), np.float32)
        weight, zero = np.zeros((rows, top), np.float32), np.zeros(rows, np.float32)
        numbers = (np.asarray(n) for n in (levels, limit, 0, 0))
        none = np.full((rows, top), -np.inf, np.float32)
        return PoseTable(rotation, shift, weight, none, zero, np.zeros(rows, np.int32), *numbers)

    def fill(self, index: np.ndarray, found: Any) -> None:
        """Take over the best of the `Candidates` found for some particles, in place."""
        best = self.weight.shape[1]
        for name, none in (("rotation", 0), ("shift", 0), ("weight", 0), ("log_prior", -np.inf)):
            values = getattr(found, name)[:, :best]
            getattr(self, name)[index, : values.shape[1]] = values
            getattr(self, name)[index, values.shape[1] :] = none
        self.discarded[index], self.order[index] = found.discarded, found.order

    def learned(self, rows: np.ndarray, symmetry: str, counts: float | None) -> "PoseTable":
        """With the density of the viewing directions of some particles, under a prior of so many counts per cell.

        Without counts it stays even.
        """
        if counts is None:
            return self
        weight = self.weight[rows] / np.maximum(self.weight[rows].sum(1, keepdims=True), 1e-30)
        found = direction_density(jnp.asarray(self.rotation[rows]), jnp.asarray(weight), symmetry, counts)
        return dataclasses.replace(self, directions=np.asarray(found))

    def support(self, index: np.ndarray) -> Support:
        """The poses of some particles to sum over."""
        parts = (getattr(self, name)[index] for name in ("rotation", "shift", "log_prior"))
        return Support(*map(jnp.asarray, parts))


@pytree
class Cells:
    """Cells of each row to be scored or split, heaviest parents first.

    Attributes:
        code: of the rotations, (rows, cells).
        shift: (rows, shifts, 2).
        rotations: how many rotations count, the first ones, (rows,).
        shifts: how many shifts count, (rows,).
        mass: expected mass of all cells of the row, 1 less what was set aside, (rows,).
    """

    code: Any
    shift: Any
    rotations: Any
    shifts: Any
    mass: Any

    @staticmethod
    def whole(code: np.ndarray, shift: np.ndarray) -> "Cells":
        """A first grid: the same cells for all rows of `shift` (rows, shifts, 2)."""
        rows = len(shift)
        full, code = np.ones(rows, np.int32), np.broadcast_to(code, (rows, len(code)))
        return Cells(code, shift, full * code.shape[1], full * shift.shape[1], np.ones(rows, np.float32))

    def take(self, index: np.ndarray, rotations: int, shifts: int) -> "Cells":
        """Some rows, and of each the first rotations and shifts."""
        part = jax.tree.map(lambda leaf: leaf[index], self)
        return dataclasses.replace(part, code=part.code[:, :rotations], shift=part.shift[:, :shifts])


@partial(jax.jit, static_argnames="step")
def children(cells: Cells, grid: RotationGrid, step: float) -> Cells:
    """All cells split; those that count still stand first."""
    shift = shift_children(cells.shift, step)
    rotations, shifts = 8 * cells.rotations, 4 * cells.shifts
    return dataclasses.replace(cells, code=grid.children(cells.code), shift=shift, rotations=rotations, shifts=shifts)


def first(like: Array, count: Array) -> Array:
    """Whether a column is among the first `count` (rows,), (rows, columns)."""
    return jnp.arange(like.shape[1]) < count[:, None]


@partial(jax.jit, static_argnames=("mass", "bound", "kept"))
def choose(joint: Array, cells: Cells, mass: float, bound: float, kept: int) -> Cells:
    """The smallest sets of rotations and of shifts that hold the mass, heaviest first.

    Args:
        joint: log posterior up to a constant, (rows, shifts, rotations).
        cells: that it belongs to.
        mass: share to hold; each set alone leaves half of the rest aside.
        bound: rotations this far below the best are left out.
        kept: rotations at most.
    """
    p = jnp.exp(joint - joint.max((1, 2), keepdims=True))
    by_rotation, by_shift = p.sum(1), p.sum(2)
    total, share = _sum(by_shift, 1, True), (1 + mass) / 2
    by_rotation, r = jax.lax.top_k(by_rotation / total, min(kept, joint.shape[2]))
    by_shift, t = jax.lax.top_k(by_shift / total, joint.shape[1])
    near = jnp.take_along_axis(p.max(1) >= np.exp(-bound), r, axis=1).sum(1)
    rotations = jnp.minimum((jnp.cumsum(by_rotation, 1) - by_rotation < share).sum(1), near)
    shifts = (jnp.cumsum(by_shift, 1) - by_shift < share).sum(1)
    inside = p[jnp.arange(len(p))[:, None, None], t[:, :, None], r[:, None, :]]
    inside = jnp.where(first(t, shifts)[:, :, None] & first(r, rotations)[:, None, :], inside, 0)
    held, pick = jnp.minimum(_sum(inside, (1, 2)) / total[:, 0], 1), partial(jnp.take_along_axis, axis=1)
    return Cells(pick(cells.code, r), pick(cells.shift, t[..., None]), rotations, shifts, cells.mass * held)


@partial(jax.jit, static_argnames=("mass", "top", "order"))
def finish(joint: Array, cells: Cells, rotation: Array, mass: float, top: int, order: int) -> Candidates:
    """The heaviest of the cells as candidates, their prior mass left out; arguments as in `choose`."""
    rows, shifts, rotations = joint.shape
    best = joint.max((1, 2))
    p = jnp.exp(joint - best[:, None, None])
    total = _sum(p, (1, 2))
    wide = min(top, rotations)
    r = jax.lax.top_k(joint.max(1), wide)[1]
    near = jnp.take_along_axis(p, r[:, None, :], axis=2).reshape(rows, -1)
    weight, where = jax.lax.top_k(near, min(top, shifts * wide))
    weight = weight / total[:, None]
    weight = jnp.where(jnp.cumsum(weight, 1) - weight < mass, weight, 0) * cells.mass[:, None]
    pad = ((0, 0), (0, top - weight.shape[1]))
    r, t = (jnp.pad(index, pad) for index in (jnp.take_along_axis(r, where % wide, axis=1), where // wide))
    rotation = jnp.broadcast_to(rotation, (rows, *rotation.shape[1:]))
    rotation = jnp.take_along_axis(rotation, r[..., None, None], axis=1)
    shift = jnp.take_along_axis(cells.shift, t[..., None], axis=1)
    evidence, orders = best + jnp.log(total), jnp.full(rows, order)
    weight, none = jnp.pad(weight, pad), jnp.full((rows, top), -jnp.inf)
    return Candidates(rotation, shift, weight, evidence, 1 - weight.sum(1), orders, none)


@partial(jax.jit, static_argnames="step")
def with_prior(found: Candidates, prior: PosePrior, grid: RotationGrid, step: float) -> Candidates:
    """Candidates with the prior mass of their cells.

    Args:
        found: of the last level.
        prior: of the poses.
        grid: the last grid.
        step: edge of its cells of shifts [Å].
    """
    log_prior = prior.log_rotation(found.rotation, grid) + prior.log_shift(found.shift, step)
    return dataclasses.replace(found, log_prior=jnp.where(found.weight > 0, log_prior, -jnp.inf))


def as_given(rotation: Array, shift: Array, order: int) -> Candidates:
    """One pose per image, (rows, 3, 3) and (rows, 2), as if it were known."""
    rows = len(rotation)
    one, zero = np.ones((rows, 1), np.float32), np.zeros(rows, np.float32)
    poses = np.asarray(rotation)[:, None], np.asarray(shift)[:, None]
    return Candidates(*poses, one, zero, zero, np.full(rows, order), np.zeros((rows, 1), np.float32))


def _sum(values: Array, axis: int | tuple[int, ...], keepdims: bool = False) -> Array:
    """Sum in float64, in the precision given."""
    with jax.enable_x64(True):
        return values.astype(jnp.float64).sum(axis, keepdims=keepdims).astype(values.dtype)


def groups(index: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pieces of an index, each also filled up to one size with copies of its last entry."""
    for start in range(0, len(index), size):
        part = index[start : start + size]
        yield part, np.pad(part, (0, size - len(part)), mode="edge")


def joined(parts: list[Any], order: list[np.ndarray]) -> Any:
    """Pieces in one, in the order of the rows; columns filled up to the widest."""
    kind, places = type(parts[0]), np.argsort(np.concatenate(order))
    fields: dict[str, np.ndarray] = {}
    for name in (f.name for f in dataclasses.fields(kind)):
        values = [getattr(part, name)[: len(index)] for part, index in zip(parts, order, strict=True)]
        if values[0].ndim > 1:
            width = max(v.shape[1] for v in values)
            values = [np.pad(v, ((0, 0), (0, width - v.shape[1]), *[(0, 0)] * (v.ndim - 2))) for v in values]
        fields[name] = np.concatenate(values)[places]
    return kind(**fields)
