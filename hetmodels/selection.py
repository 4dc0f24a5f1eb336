"""Which cells of a pose grid to go on with: the smallest sets that hold the posterior, and what they leave aside."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.imaging.poses import RotationGrid, shift_children
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
        discarded: posterior mass set aside, an estimate from the level that did so, corrected by how much the lightest
            of the kept cells gained when they were split, (rows,).
    """

    rotation: Any
    shift: Any
    weight: Any
    log_evidence: Any
    discarded: Any


@pytree
class Cells:
    """Cells of each row to be scored or split, heaviest parents first.

    Attributes:
        code: of the rotations, (rows, cells).
        shift: (rows, shifts, 2).
        rotations: how many rotations count, the first ones, (rows,).
        shifts: how many shifts count, (rows,).
        mass: estimated mass of all cells of the row, 1 less what was set aside, (rows,).
        tail: share of that mass that the level before saw in the lightest quarter of the parents, (rows,).
        aside: odds of the mass that the level before set aside, (rows,).
    """

    code: Any
    shift: Any
    rotations: Any
    shifts: Any
    mass: Any
    tail: Any
    aside: Any

    @staticmethod
    def whole(code: np.ndarray, shift: np.ndarray) -> "Cells":
        """A first grid: the same cells for all rows of `shift` (rows, shifts, 2)."""
        rows = len(shift)
        full, zero = np.ones(rows, np.int32), np.zeros(rows, np.float32)
        code = np.broadcast_to(code, (rows, len(code)))
        return Cells(code, shift, full * code.shape[1], full * shift.shape[1], zero + 1, zero, zero)

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
    top = joint.max((1, 2), keepdims=True)
    p = jnp.exp(joint - top)
    p = p / _sum(p, (1, 2), True)
    share = (1 + mass) / 2
    by_rotation, r = jax.lax.top_k(p.sum(1), min(kept, joint.shape[2]))
    by_shift, t = jax.lax.top_k(p.sum(2), joint.shape[1])
    near = jnp.take_along_axis(joint.max(1) >= top[:, 0] - bound, r, axis=1).sum(1)
    rotations = jnp.minimum((jnp.cumsum(by_rotation, 1) - by_rotation < share).sum(1), near)
    shifts = (jnp.cumsum(by_shift, 1) - by_shift < share).sum(1)
    inside = p[jnp.arange(len(p))[:, None, None], t[:, :, None], r[:, None, :]]
    inside = jnp.where(first(t, shifts)[:, :, None] & first(r, rotations)[:, None, :], inside, 0)
    held, heavy = _sum(inside, (1, 2)), first(r, rotations - rotations // 4)
    tail = _sum(jnp.where(heavy[:, None, :], 0, inside), (1, 2)) / held
    aside, pick = jnp.maximum(1 - held, 0) / held, partial(jnp.take_along_axis, axis=1)
    return Cells(pick(cells.code, r), pick(cells.shift, t[..., None]), rotations, shifts, _mass(p, cells), tail, aside)


@partial(jax.jit, static_argnames=("mass", "top"))
def finish(joint: Array, cells: Cells, rotation: Array, mass: float, top: int) -> Candidates:
    """The heaviest of the cells as candidates; arguments as in `choose`."""
    rows, shifts, rotations = joint.shape
    best = joint.max((1, 2))
    p = jnp.exp(joint - best[:, None, None])
    total = _sum(p, (1, 2))
    wide = min(top, rotations)
    r = jax.lax.top_k(joint.max(1), wide)[1]
    near = jnp.take_along_axis(p, r[:, None, :], axis=2).reshape(rows, -1)
    weight, where = jax.lax.top_k(near, min(top, shifts * wide))
    weight = weight / total[:, None]
    weight = jnp.where(jnp.cumsum(weight, 1) - weight < mass, weight, 0) * _mass(p, cells)[:, None]
    pad = ((0, 0), (0, top - weight.shape[1]))
    r, t = (jnp.pad(index, pad) for index in (jnp.take_along_axis(r, where % wide, axis=1), where // wide))
    rotation = jnp.broadcast_to(rotation, (rows, *rotation.shape[1:]))
    rotation = jnp.take_along_axis(rotation, r[..., None, None], axis=1)
    shift = jnp.take_along_axis(cells.shift, t[..., None], axis=1)
    return Candidates(rotation, shift, jnp.pad(weight, pad), best + jnp.log(total), 1 - weight.sum(1))


def _mass(p: Array, cells: Cells) -> Array:
    """Share of the posterior in all cells of a row, from posterior masses up to a constant.

    What the level before set aside is taken to have gained, now that it could be seen better, as the lightest quarter
    of the kept parents did: noise has flattered those that led.
    """
    parents, by_rotation = cells.rotations // 8, p.sum(1)
    tail = jnp.where(first(by_rotation, 8 * (parents - parents // 4)), 0, by_rotation).sum(1) / by_rotation.sum(1)
    odds = tail * (1 - cells.tail) / jnp.maximum(cells.tail * (1 - tail), 1e-12)
    growth = jnp.where((cells.tail > 0) & (tail < 1), jnp.maximum(odds, 1), 1)
    return cells.mass / (1 + cells.aside * growth)


def _sum(values: Array, axis: tuple[int, ...], keepdims: bool = False) -> Array:
    """Sum in float64, in the precision given."""
    with jax.enable_x64(True):
        return values.astype(jnp.float64).sum(axis, keepdims=keepdims).astype(values.dtype)
