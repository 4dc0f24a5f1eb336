"""The posterior of a batch's poses, given maps, on a grid that is refined where the posterior lies.

A first grid over all of SO(3) and a circle of shifts, or about given poses, is scored at a low band
(see `hetmodels.scoring`). Per image the smallest sets of rotations and of shifts that hold the mass are split into
children and scored at a higher band, and so on. What is set aside on the way is added up as `discarded`.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.imaging.poses import PosePrior, RotationGrid, Sphere, Tangent, shift_children, shift_lattice, step_of
from hetmodels.scoring import Templates, bank_scores, bank_slices, image_side, own_scores, slices_at
from hetmodels.tree import pytree

_BLOCK = 576  # rotations of the bank scored at once
_SCORES = 2**25  # scores of a first grid held at once
_SLICES = 2**20  # pixels of gathered slices held at once
_WIDTHS = ((4, 4), (16, 8), (64, 16))  # rotations and shifts that are split, for images of rising need


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
        discarded: posterior mass set aside, estimated at the level where it was, (rows,).
    """

    rotation: Any
    shift: Any
    weight: Any
    log_evidence: Any
    discarded: Any


@dataclasses.dataclass(frozen=True)
class Search:
    """How to look for poses.

    Attributes:
        order: HEALPix order of the first grid, steps of 60 degrees / 2^order.
        levels: how often the kept cells are split.
        limit: band of the last level, in Fourier pixels; earlier ones use what their steps resolve.
        shift_radius: radius of the circle of shifts [Å].
        shift_step: step of its lattice at the first level [Å].
        mass: posterior mass to keep at each level.
        kept: rotations split per image at most.
        bound: rotations whose best score lies this many nats below the image's best are set aside.
        top: poses handed back per image.
        reach: radius in steps of a first grid about given poses; 0 for all of SO(3).
    """

    order: int
    levels: int
    limit: int
    shift_radius: float
    shift_step: float
    mass: float = 0.999
    kept: int = 256
    bound: float = 15.0
    top: int = 64
    reach: float = 0.0

    def band(self, level: int) -> int:
        """Band of a level: a step at its edge moves the slice of a box-filling particle by 2.4 Fourier pixels."""
        if level == self.levels:
            return self.limit
        return min(self.limit, int(np.ceil(2.4 / step_of(self.order + level))))

    def first_grid(self) -> Sphere | Tangent:
        """The first grid of rotations."""
        return Tangent.of(self.order, self.reach) if self.reach else Sphere.of(self.order)


@pytree
class _Job:
    """What a search is given, row by row."""

    batch: Batch
    prior: PosePrior
    rotation: Array
    shift: Array
    copy: Array

    def rows(self, index: np.ndarray) -> "_Job":
        return jax.tree.map(lambda leaf: jnp.take(leaf, jnp.asarray(index), axis=0), self)


@pytree
class _Cells:
    """Cells of each row to be scored or split, heaviest parents first.

    Attributes:
        code: of the rotations, (rows, cells).
        shift: (rows, shifts, 2).
        rotations: how many rotations count, the first ones, (rows,).
        shifts: how many shifts count, (rows,).
        mass: estimated mass of all cells of the row, 1 less what was set aside, (rows,).
        tail: share of that mass that the level before saw in the lighter half of the parents, (rows,).
        aside: odds of the mass that the level before set aside, (rows,).
    """

    code: Array
    shift: Array
    rotations: Array
    shifts: Array
    mass: Array
    tail: Array
    aside: Array

    @staticmethod
    def whole(code: Array, shift: Array) -> "_Cells":
        """A first grid."""
        full = np.ones(len(code), np.int32)
        zero = np.zeros(len(code))
        return _Cells(code, shift, full * code.shape[1], full * shift.shape[1], zero + 1, zero, zero)

    def take(self, index: np.ndarray, rotations: int, shifts: int) -> "_Cells":
        """Some rows, and of each the first rotations and shifts."""
        part = jax.tree.map(lambda leaf: leaf[index], self)
        return dataclasses.replace(part, code=part.code[:, :rotations], shift=part.shift[:, :shifts])

    def children(self, grid: RotationGrid, step: float) -> "_Cells":
        """All cells split; `rotations` and `shifts` count the valid ones, which stand first."""
        shift = shift_children(jnp.asarray(self.shift), step)
        code = grid.children(jnp.asarray(self.code))
        return dataclasses.replace(self, code=code, shift=shift, rotations=8 * self.rotations, shifts=4 * self.shifts)


def find_poses(
    search: Search,
    templates: Templates,
    batch: Batch,
    prior: PosePrior,
    rotation: Array,
    shift: Array,
    copy: Array | None = None,
) -> Candidates:
    """Posterior poses of a batch.

    Args:
        search: how to look.
        templates: maps and noise.
        batch: the images; their file poses are not looked at.
        prior: of the poses.
        rotation: what the first grid is turned by, (rows, 3, 3): its centre, or, for a grid of all SO(3), any
            rotation, the same for all rows.
        shift: centre of the shifts [Å], (rows, 2).
        copy: which copy of the maps an image is compared with, (rows,); the first if None.
    """
    copy = jnp.zeros(len(batch.weight), jnp.int32) if copy is None else copy
    job, grid, step = _Job(batch, prior, rotation, shift, copy), search.first_grid(), search.shift_step
    found = _first_level(search, templates, job, grid)
    for level in range(1, search.levels + 1):
        found = _split_level(search, templates, job, grid, found, step, level)
        grid, step = grid.finer(), step / 2
    return found


def _first_level(search: Search, templates: Templates, job: _Job, grid: Sphere | Tangent) -> Any:
    offsets = shift_lattice(search.shift_radius, search.shift_step)
    rows, parts, order = len(job.copy), [], []
    if isinstance(grid, Tangent):
        for index, padded in _groups(np.arange(rows), _rows_at_once(templates, rows, grid.cells, search.band(0))):
            part = job.rows(padded)
            code = jnp.broadcast_to(jnp.arange(grid.cells), (len(padded), grid.cells))
            cells = _Cells.whole(code, part.shift[:, None] + jnp.asarray(offsets, part.shift.dtype))
            parts.append(_level(search, templates, part, grid, cells, search.shift_step, 0))
            order.append(index)
        return _joined(parts, order)
    most = max(1, min(rows, _SCORES // (grid.cells * len(offsets))))
    for copy in np.unique(np.asarray(job.copy)):
        for index, padded in _groups(np.flatnonzero(np.asarray(job.copy) == copy), most):
            parts.append(_bank_level(search, templates, job.rows(padded), grid, offsets))
            order.append(index)
    return _joined(parts, order)


def _bank_level(search: Search, templates: Templates, job: _Job, grid: Sphere, offsets: np.ndarray) -> Any:
    """The first level against slices common to all images; where their stretches differ, at the mean stretch."""
    limit, rows = search.band(0), len(job.copy)
    shift = job.shift[:, None] + jnp.asarray(offsets, job.shift.dtype)
    left, weight = image_side(templates, job.batch, shift, limit)
    stretch, block, scores = job.batch.stretch.mean(0), min(_BLOCK, grid.cells), []
    for start in range(0, grid.cells, block):
        code = jnp.arange(start, start + block)
        slices = bank_slices(templates, grid, code, job.rotation[:1], stretch, job.copy[0], limit)
        scores.append(bank_scores(templates, left, weight, slices))
    log_shift = job.prior.log_shift(shift, search.shift_step)
    joint = jnp.concatenate(scores, -1) + log_shift[..., None] + grid.log_volume
    code = jnp.broadcast_to(jnp.arange(grid.cells), (rows, grid.cells))
    return _settle(search, job, grid, _Cells.whole(code, shift), joint, 0)


def _split_level(
    search: Search, templates: Templates, job: _Job, grid: RotationGrid, found: _Cells, step: float, level: int
) -> Any:
    """A further level: the children of the kept cells, images of like need together."""
    most = found.code.shape[1], found.shift.shape[1]
    widths = [(r, t) for r, t in _WIDTHS if r < most[0] and t < most[1]] + [most]
    need = np.array([[i for i, (r, t) in enumerate(widths) if a <= r and b <= t][0]
                     for a, b in zip(found.rotations, found.shifts, strict=True)])  # fmt: skip
    parts, order, finer = [], [], grid.finer()
    for i, (r, t) in enumerate(widths):
        at_once = _rows_at_once(templates, len(need), 8 * r, search.band(level))
        for index, padded in _groups(np.flatnonzero(need == i), at_once):
            cells = found.take(padded, r, t).children(grid, step)
            parts.append(_level(search, templates, job.rows(padded), finer, cells, step / 2, level))
            order.append(index)
    return _joined(parts, order)


def _level(
    search: Search, templates: Templates, job: _Job, grid: RotationGrid, cells: _Cells, step: float, level: int
) -> Any:
    """Score cells against slices of each image's own."""
    limit, count = search.band(level), cells.code.shape[1]
    rotation, log_cells = _placed(job, grid, cells, step)
    left, weight = image_side(templates, job.batch, cells.shift, limit)
    each = partial(jnp.repeat, repeats=count, axis=0)
    slices = slices_at(templates, rotation.reshape(-1, 3, 3), each(job.batch.stretch), each(job.copy), limit)
    joint = own_scores(templates, left, weight, slices, count) + log_cells
    return _settle(search, job, grid, cells, joint, level)


@partial(jax.jit, static_argnames="step")
def _placed(job: _Job, grid: RotationGrid, cells: _Cells, step: float) -> tuple[Array, Array]:
    """Rotations (rows, cells, 3, 3) and log prior mass of the product cells, (rows, shifts, rotations)."""
    rotation = grid.rotation(cells.code, job.rotation)
    log_rotation = jnp.where(_first(cells.code, cells.rotations), job.prior.log_rotation(rotation, grid), -jnp.inf)
    log_shift = jnp.where(_first(cells.shift[..., 0], cells.shifts), job.prior.log_shift(cells.shift, step), -jnp.inf)
    return rotation, log_shift[:, :, None] + log_rotation[:, None, :]


def _first(like: Array, count: Array) -> Array:
    return jnp.arange(like.shape[1]) < jnp.asarray(count)[:, None]


def _settle(search: Search, job: _Job, grid: RotationGrid, cells: _Cells, joint: Array, level: int) -> Any:
    """What goes on to the next level, or the candidates after the last one; numpy."""
    tail = np.asarray(_tail(joint, jnp.asarray(cells.rotations)))
    mass = np.asarray(cells.mass) / (1 + np.asarray(cells.aside) * _growth(cells, tail))
    code, shift = np.asarray(cells.code), np.asarray(cells.shift)
    if level < search.levels:
        found = _choose(joint, search.mass, search.bound, search.kept)
        r, t, rotations, shifts, tail, aside = (np.asarray(f) for f in found)
        return _Cells(_pick(code, r), _pick(shift, t), rotations, shifts, mass, tail, aside)
    r, t, weight, total = (np.asarray(f) for f in _finish(joint, search.mass, search.top))
    rotation = np.asarray(grid.rotation(jnp.asarray(_pick(code, r)), job.rotation))
    weight = weight * mass[:, None]
    return Candidates(rotation, _pick(shift, t), weight, total, 1 - weight.sum(1))


def _growth(cells: _Cells, tail: np.ndarray) -> np.ndarray:
    """By how much light cells gain when they are seen better: noise has flattered those that led.

    What was set aside is taken to have gained as the lighter half of the kept parents did.
    """
    before, after = np.asarray(cells.tail), tail
    odds = after * (1 - before) / np.maximum(before * (1 - after), 1e-12)
    return np.where((before > 0) & (after < 1), np.maximum(odds, 1), 1)


def _pick(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    return values[np.arange(len(index))[:, None], index]


@partial(jax.jit, static_argnames=("mass", "bound", "kept"))
def _choose(joint: Array, mass: float, bound: float, kept: int) -> tuple[Array, ...]:
    """The smallest sets of rotations and of shifts that hold the mass, heaviest first.

    Args:
        joint: log posterior up to a constant, (rows, shifts, rotations).
        mass: share to hold; each set alone holds half as little less.
        bound: rotations this far below the best are left out.
        kept: rotations at most.

    Returns:
        Indices of rotations (rows, kept) and shifts (rows, shifts), how many of them count, the share of their mass
        in the lighter half of the rotations, and the odds of the mass set aside.
    """
    top = joint.max((1, 2), keepdims=True)
    p = jnp.exp(joint - top)
    p = p / _sum(p, (1, 2), True)
    share = (1 + mass) / 2
    by_rotation, r = jax.lax.top_k(p.sum(1), min(kept, joint.shape[2]))
    by_shift, t = jax.lax.top_k(p.sum(2), joint.shape[1])
    near = jnp.take_along_axis((joint.max(1) >= top[:, 0] - bound), r, axis=1).sum(1)
    rotations = jnp.minimum((jnp.cumsum(by_rotation, 1) - by_rotation < share).sum(1), near)
    shifts = (jnp.cumsum(by_shift, 1) - by_shift < share).sum(1)
    inside = p[jnp.arange(len(p))[:, None, None], t[:, :, None], r[:, None, :]]
    inside = jnp.where(_first(t, shifts)[:, :, None] & _first(r, rotations)[:, None, :], inside, 0)
    held, heavy = _sum(inside, (1, 2)), _first(r, (rotations + 1) // 2)
    tail = _sum(jnp.where(heavy[:, None, :], 0, inside), (1, 2)) / held
    return r, t, rotations, shifts, tail, jnp.maximum(1 - held, 0) / held


@jax.jit
def _tail(joint: Array, rotations: Array) -> Array:
    """Posterior share of the children of the lighter half of the parents, (rows,)."""
    p = jnp.exp(joint - joint.max((1, 2), keepdims=True)).sum(1)
    return jnp.where(_first(p, 8 * ((rotations // 8 + 1) // 2)), 0, p).sum(1) / p.sum(1)


@partial(jax.jit, static_argnames=("mass", "top"))
def _finish(joint: Array, mass: float, top: int) -> tuple[Array, ...]:
    """The heaviest cells: indices of rotation and shift (rows, top), posterior mass (rows, top), log of the sum."""
    rows, shifts, rotations = joint.shape
    best = joint.max((1, 2))
    scaled = jnp.exp(joint - best[:, None, None])
    total = _sum(scaled, (1, 2))
    wide = min(top, rotations)
    r = jax.lax.top_k(joint.max(1), wide)[1]
    near = jnp.take_along_axis(scaled, r[:, None, :], axis=2).reshape(rows, -1)
    weight, where = jax.lax.top_k(near, min(top, shifts * wide))
    weight = weight / total[:, None]
    weight = jnp.where(jnp.cumsum(weight, 1) - weight < mass, weight, 0)
    pad = ((0, 0), (0, top - weight.shape[1]))
    r, t = jnp.take_along_axis(r, where % wide, axis=1), where // wide
    return jnp.pad(r, pad), jnp.pad(t, pad), jnp.pad(weight, pad), best + jnp.log(total)


def _sum(values: Array, axis: tuple[int, ...], keepdims: bool = False) -> Array:
    """Sum in float64, in the precision given."""
    with jax.enable_x64(True):
        return values.astype(jnp.float64).sum(axis, keepdims=keepdims).astype(values.dtype)


def _rows_at_once(templates: Templates, rows: int, rotations: int, limit: int) -> int:
    """Images whose gathered slices are held at once, a power of two."""
    pixels = templates.observation.disc.narrowed(limit).pixels
    most = max(1, _SLICES // (rotations * pixels))
    return min(1 << (most.bit_length() - 1), 1 << max(0, rows - 1).bit_length())


def _groups(index: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pieces of an index, each also filled up to one size with copies of its last entry."""
    for start in range(0, len(index), size):
        part = index[start : start + size]
        yield part, np.pad(part, (0, size - len(part)), mode="edge")


def _joined(parts: list[Any], order: list[np.ndarray]) -> Any:
    """Pieces in one, in the order of the rows; columns filled up to the widest."""
    kind, places = type(parts[0]), np.argsort(np.concatenate(order))
    fields: dict[str, np.ndarray] = {}
    for name in (f.name for f in dataclasses.fields(kind)):
        values = [np.asarray(getattr(p, name))[: len(i)] for p, i in zip(parts, order, strict=True)]
        if values[0].ndim > 1:
            width = max(v.shape[1] for v in values)
            values = [np.pad(v, ((0, 0), (0, width - v.shape[1]), *[(0, 0)] * (v.ndim - 2))) for v in values]
        fields[name] = np.concatenate(values)[places]
    return kind(**fields)
