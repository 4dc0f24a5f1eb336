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
from hetmodels.imaging.poses import PosePrior, RotationGrid, Sphere, Tangent, finest_order, shift_lattice, step_of
from hetmodels.imaging.rotations import from_rotvec, uniform
from hetmodels.local import Local, image_design
from hetmodels.observation import Observation, PoseTable, Unknown, split_junk
from hetmodels.scoring import Templates, bank_scores, bank_slices, image_side, mismatch, own_scores, slices_at
from hetmodels.selection import Candidates, Cells, children, choose, finish, first
from hetmodels.tree import pytree

_BLOCK = 576  # rotations of the bank scored at once
_SCORES = 2**25  # scores of a first grid held at once
_SLICES = 2**20  # pixels of gathered slices held at once
_WIDTHS = ((8, 6), (64, 16))  # rotations and shifts that are split, for images of rising need


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


@dataclasses.dataclass(frozen=True)
class _Level:
    """One level of a search."""

    search: Search
    templates: Templates
    number: int

    @property
    def limit(self) -> int:
        return self.search.band(self.number)

    @property
    def last(self) -> bool:
        return self.number == self.search.levels

    @property
    def step(self) -> float:
        """Edge of a cell of shifts [Å]."""
        return self.search.shift_step / 2**self.number

    @property
    def excess(self) -> Array:
        """See `mismatch`; the last level weighs poses, not cells."""
        if self.last:
            return jnp.zeros(self.templates.observation.disc.shells)
        return mismatch(self.templates, step_of(self.search.order + self.number), self.step)

    def settle(self, joint: Array, cells: Cells, rotation: Array) -> Any:
        """What goes on to the next level, or the candidates after the last one; numpy."""
        how = self.search
        if self.last:
            found = finish(joint, cells, rotation, how.mass, how.top)
        else:
            found = choose(joint, cells, how.mass, how.bound, how.kept)
        return jax.tree.map(np.asarray, found)


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
    job, grid = _Job(batch, prior, rotation, shift, copy), search.first_grid()
    level = _Level(search, templates, 0)
    found = _about(level, job, grid) if isinstance(grid, Tangent) else _bank(level, job, grid)
    for number in range(1, search.levels + 1):
        found = _split(_Level(search, templates, number), job, grid, found)
        grid = grid.finer()
    return found


def refresh(
    pose: Unknown, key: Array | None, templates: Templates, batch: Batch, table: PoseTable, copy: Array | None
) -> Candidates:
    """See `Unknown.refresh`; about the last pose only where every image of the batch has one."""
    levels, pixel, rows = int(table.levels), templates.observation.spacing, len(batch.weight)
    how, index = _everywhere(pose, levels, int(table.limit), pixel), np.asarray(batch.index)
    near = pose.order + levels >= pose.local and bool(np.all(table.weight[index, 0] > 0))
    if near:
        step = how.shift_step / 2 ** (levels - pose.oversampling)
        how = dataclasses.replace(how, order=pose.order + levels - pose.oversampling, levels=pose.oversampling,
                                  reach=3.0, shift_radius=2 * step, shift_step=step)  # fmt: skip
    turn, move = jnp.eye(3), jnp.zeros(2)
    if key is not None:
        key_r, key_s = jax.random.split(key)
        small = from_rotvec(step_of(how.order) * jax.random.uniform(key_r, (3,), minval=-0.5, maxval=0.5))
        turn = small if near else uniform(key_r, 1)[0]
        move = how.shift_step * jax.random.uniform(key_s, (2,), minval=-0.5, maxval=0.5)
    rotation, shift = jnp.broadcast_to(turn, (rows, 3, 3)), jnp.broadcast_to(move, (rows, 2))
    prior = PosePrior(rotation, jnp.zeros((rows, 2)), np.inf, pose.shift_sd * pixel)
    if near:
        rotation = jnp.matmul(turn, table.rotation[index, 0], precision=jax.lax.Precision.HIGHEST)
        shift = table.shift[index, 0] + move
    return find_poses(how, templates, batch, prior, rotation, shift, copy)


def _everywhere(pose: Unknown, levels: int, limit: int, pixel: float) -> Search:
    top = max(pose.poses, pose.top)
    radius, step = pose.shift_range * pixel, pose.shift_step * pixel
    return Search(pose.order, levels, limit, radius, step, pose.mass, pose.kept, top=top)


def searched_local(
    family: Any, shared: Any, batch: Batch, observation: Observation, noise: Array, junk: Array | None
) -> Local:
    """The posterior of a linear family's latents and of unknown poses, searched everywhere with the full band.

    The grid is as fine as the band needs and stays where it is. The moments of the latents are those of the
    heaviest poses, at most `poses` of them.
    """
    pose, limit, rows = observation.pose, observation.disc.limit, len(batch.weight)
    levels = max(pose.oversampling, finest_order(limit) - pose.order)
    how = _everywhere(pose, levels, limit, observation.spacing)
    eye, zero = jnp.broadcast_to(jnp.eye(3), (rows, 3, 3)), jnp.zeros((rows, 2))
    prior = PosePrior(eye, zero, np.inf, pose.shift_sd * observation.spacing)
    found = find_poses(how, Templates.of(family, shared, observation, noise), batch, prior, eye, zero)
    share = found.weight / found.weight.sum(1, keepdims=True)
    parts = []
    for k in range(max(1, int((share > 0).sum(1).max()))):
        rotation, shift = jnp.asarray(found.rotation[:, k]), jnp.asarray(found.shift[:, k])
        turned = dataclasses.replace(batch, rotation=rotation, shift=shift)
        parts.append(_weighed(family, shared, turned, observation, noise, share[:, k]))
    mean, square, nodes, contrast = (sum(values[1:], values[0]) for values in zip(*parts, strict=True))
    spread = square - mean[:, :, None] * mean[:, None, :]
    variance = observation.pixel_variance(noise, batch.group)
    evidence, clean = split_junk(jnp.asarray(found.log_evidence), observation, batch, variance, junk)
    top = pose.top
    return Local(
        mean, spread, nodes, contrast, 1 - clean, found.rotation[:, 0], found.shift[:, 0], evidence,
        jnp.zeros(rows), found.rotation[:, :top], found.shift[:, :top], found.weight[:, :top],
    )  # fmt: skip


@partial(jax.jit, static_argnames="observation")
def _weighed(
    family: Any, shared: Any, batch: Batch, observation: Observation, noise: Array, share: Array
) -> tuple[Array, ...]:
    """First and second moments of the latents, nodes and contrast at one pose per image, times its share."""
    found, _ = image_design(family, shared, batch, observation, noise)
    square = found.covariance + found.mean[:, :, None] * found.mean[:, None, :]
    moments = (found.mean, square, found.responsibilities, found.contrast)
    return tuple(m * share.reshape(-1, *[1] * (m.ndim - 1)) for m in moments)


def _offsets(level: _Level, job: _Job) -> np.ndarray:
    """Shifts of a first grid, (rows, shifts, 2)."""
    lattice = shift_lattice(level.search.shift_radius, level.search.shift_step)
    centre = np.asarray(job.shift)
    return centre[:, None] + lattice.astype(centre.dtype)


def _bank(level: _Level, job: _Job, grid: Sphere) -> Any:
    """A first level against slices common to all images; where their stretches differ, at the mean stretch."""
    shift, copies, code = _offsets(level, job), np.asarray(job.copy), np.arange(grid.cells)
    most = max(1, min(len(shift), _SCORES // (grid.cells * shift.shape[1])))
    stretch, turn, excess = jnp.asarray(np.asarray(job.batch.stretch).mean(0)), job.rotation[:1], level.excess
    parts, order, block = [], [], min(_BLOCK, grid.cells)
    for copy in np.unique(copies):
        for index, padded in _groups(np.flatnonzero(copies == copy), most):
            part, cells = _rows(job, padded), Cells.whole(code, shift[padded])
            left, weight, log_shift = _bank_images(level.templates, part, cells.shift, excess, level.limit, level.step)
            scores = []
            for start in range(0, grid.cells, block):
                piece = code[start : start + block]
                slices = bank_slices(level.templates, grid, piece, turn, stretch, copies[padded[0]], level.limit)
                scores.append(bank_scores(level.templates, left, weight, slices))
            joint, rotation = _bank_joint(scores, log_shift, grid, turn)
            parts.append(level.settle(joint, cells, rotation))
            order.append(index)
    return _joined(parts, order)


@partial(jax.jit, static_argnames=("limit", "step"))
def _bank_images(
    templates: Templates, job: _Job, shift: Array, excess: Array, limit: int, step: float
) -> tuple[Array, Array, Array]:
    left, weight = image_side(templates, job.batch, shift, excess, limit)
    return left, weight, job.prior.log_shift(shift, step)


@jax.jit
def _bank_joint(scores: list[Array], log_shift: Array, grid: Sphere, turn: Array) -> tuple[Array, Array]:
    joint = jnp.concatenate(scores, -1) + log_shift[..., None] + grid.log_volume
    return joint, grid.rotation(jnp.arange(grid.cells)[None], turn)


def _about(level: _Level, job: _Job, grid: Tangent) -> Any:
    """A first level about each image's own pose."""
    shift, code, excess = _offsets(level, job), np.arange(grid.cells), level.excess
    parts, order = [], []
    for index, padded in _groups(np.arange(len(shift)), _rows_at_once(level, len(shift), grid.cells)):
        cells = Cells.whole(code, shift[padded])
        parts.append(level.settle(*_own(level, _rows(job, padded), grid, cells, excess)))
        order.append(index)
    return _joined(parts, order)


def _split(level: _Level, job: _Job, parent: RotationGrid, found: Cells) -> Any:
    """A further level: the children of the kept cells, images of like need together."""
    most = found.code.shape[1], found.shift.shape[1]
    widths = [(r, t) for r, t in _WIDTHS if r < most[0] and t < most[1]] + [most]
    need = np.full(len(found.mass), len(widths) - 1)
    for i, (r, t) in reversed(list(enumerate(widths))):
        need[(found.rotations <= r) & (found.shifts <= t)] = i
    parts, order, grid, excess = [], [], parent.finer(), level.excess
    for i, (r, t) in enumerate(widths):
        for index, padded in _groups(np.flatnonzero(need == i), _rows_at_once(level, len(need), 8 * r)):
            cells = children(found.take(padded, r, t), parent, 2 * level.step)
            parts.append(level.settle(*_own(level, _rows(job, padded), grid, cells, excess)))
            order.append(index)
    return _joined(parts, order)


@jax.jit
def _rows(job: _Job, index: np.ndarray) -> _Job:
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0), job)


def _own(level: _Level, job: _Job, grid: RotationGrid, cells: Cells, excess: Array) -> tuple[Array, Cells, Array]:
    """Log posterior up to a constant of cells of each image's own, and their rotations."""
    rotation, slices = _seen(level.templates, job, grid, cells, level.limit)
    joint = _scored(level.templates, job, grid, cells, rotation, slices, excess, level.limit, level.step)
    return joint, cells, rotation


@partial(jax.jit, static_argnames="limit")
def _seen(templates: Templates, job: _Job, grid: RotationGrid, cells: Cells, limit: int) -> tuple[Array, Array]:
    """Rotations (rows, cells, 3, 3) and their slices; apart from `_scored`, lest XLA gather them in every use."""
    rotation = grid.rotation(cells.code, job.rotation)
    each = partial(jnp.repeat, repeats=cells.code.shape[1], axis=0)
    flat = rotation.reshape(-1, 3, 3)
    return rotation, slices_at(templates, flat, each(job.batch.stretch), each(job.copy), limit)


@partial(jax.jit, static_argnames=("limit", "step"))
def _scored(
    templates: Templates, job: _Job, grid: RotationGrid, cells: Cells, rotation: Array, slices: Array, excess: Array,
    limit: int, step: float,
) -> Array:  # fmt: skip
    left, weight = image_side(templates, job.batch, cells.shift, excess, limit)
    log_rotation = jnp.where(first(cells.code, cells.rotations), job.prior.log_rotation(rotation, grid), -jnp.inf)
    log_shift = jnp.where(first(cells.shift[..., 0], cells.shifts), job.prior.log_shift(cells.shift, step), -jnp.inf)
    score = own_scores(templates, left, weight, slices, rotation.shape[1])
    return score + log_shift[:, :, None] + log_rotation[:, None, :]


def _rows_at_once(level: _Level, rows: int, rotations: int) -> int:
    """Images whose gathered slices are held at once, a power of two."""
    pixels = level.templates.observation.disc.narrowed(level.limit).pixels
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
        values = [getattr(part, name)[: len(index)] for part, index in zip(parts, order, strict=True)]
        if values[0].ndim > 1:
            width = max(v.shape[1] for v in values)
            values = [np.pad(v, ((0, 0), (0, width - v.shape[1]), *[(0, 0)] * (v.ndim - 2))) for v in values]
        fields[name] = np.concatenate(values)[places]
    return kind(**fields)
