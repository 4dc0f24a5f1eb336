"""The posterior of a batch's poses, given maps, on a grid that is refined where the posterior lies.

A first grid over all of SO(3) and a circle of shifts, or about given poses, is scored at a low band
(see `hetmodels.scoring`). Per image the smallest sets of rotations and of shifts that hold the mass are split into
children and scored at a higher band, and so on. What is set aside on the way is added up as `discarded`.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.imaging.poses import (
    PosePrior,
    RotationGrid,
    Sphere,
    Tangent,
    asymmetric_cells,
    finest_order,
    shift_lattice,
    step_of,
)  # fmt: skip
from hetmodels.imaging.rotations import from_rotvec, uniform
from hetmodels.observation import Observation
from hetmodels.packed_bank import Bank, bank_for, packed_scores
from hetmodels.scoring import (
    Templates,
    bank_scores,
    bank_side,
    bank_slices,
    image_side,
    lacking,
    mismatch,
    own_scores,
    slices_at,
)
from hetmodels.selection import (
    Candidates,
    Cells,
    PoseTable,
    children,
    choose,
    finish,
    first,
    groups,
    joined,
    with_prior,
)
from hetmodels.tree import pytree

_BLOCK = 576  # rotations of the bank scored at once
_TILE = 2**19  # scores of a first grid held at once
_SLICES = 2**20  # pixels of gathered slices held at once
_PACKED = 32  # images scored in one call against a bank that they share
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

    def finest(self, observation: Observation) -> int:
        """Levels after which a step moves the last shell of the band by one Fourier pixel or a quarter of a period."""
        quarter = observation.disc.size * observation.spacing / (4 * self.limit)
        shifts = int(np.ceil(np.log2(self.shift_step / quarter) - 1e-9))
        return max(0, finest_order(self.limit) - self.order, shifts)

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
        """What goes on to the next level, or the candidates after the last one."""
        how = self.search
        if self.last:
            return finish(joint, cells, rotation, how.mass, how.top, how.order + how.levels)
        return choose(joint, cells, how.mass, how.bound, how.kept)


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
    return jax.tree.map(np.asarray, with_prior(found, prior, grid, search.shift_step / 2**search.levels))


@dataclasses.dataclass(frozen=True)
class Plan:
    """A search and where it takes place; fields as the arguments of `find_poses`."""

    search: Search
    prior: PosePrior
    rotation: Array
    shift: Array

    def seen_from(self, directions: Array | None) -> "Plan":
        """With a density of viewing directions in the prior."""
        if directions is None:
            return self
        every = jnp.broadcast_to(jnp.asarray(directions), (len(self.shift), len(directions)))
        return dataclasses.replace(self, prior=dataclasses.replace(self.prior, directions=every))

    def moved(self, key: Array) -> "Plan":
        """The grid turned and moved at random: by any rotation where it covers them all, else within a step."""
        how, (key_r, key_s) = self.search, jax.random.split(key)
        turn = uniform(key_r, 1)[0]
        if how.reach:
            turn = from_rotvec(step_of(how.order) * jax.random.uniform(key_r, (3,), minval=-0.5, maxval=0.5))
        move = how.shift_step * jax.random.uniform(key_s, (2,), minval=-0.5, maxval=0.5)
        rotation = jnp.matmul(turn, self.rotation, precision=jax.lax.Precision.HIGHEST)
        return dataclasses.replace(self, rotation=rotation, shift=self.shift + move)

    def resolved(self, templates: Templates, batch: Batch, nats: float = 2.0, beyond: int = 0) -> "Plan":
        """With as many levels more as it takes until the last grid shows what the images can tell apart.

        Args:
            templates: maps and noise.
            batch: the images.
            nats: what the last grid may lack on average.
            beyond: levels that it may have more than the band asks for (`Search.finest`).
        """
        how, obs = self.search, templates.observation
        for levels in range(how.levels, max(how.levels, how.finest(obs) + beyond) + 1):
            how = dataclasses.replace(how, levels=levels)
            excess = mismatch(templates, step_of(how.order + levels), how.shift_step / 2**levels)
            if float(lacking(templates, batch, excess, how.limit).mean()) <= nats:
                break
        return dataclasses.replace(self, search=how)

    def run(self, templates: Templates, batch: Batch, copy: Array | None = None) -> Candidates:
        """The posterior of a batch's poses, see `find_poses`."""
        return find_poses(self.search, templates, batch, self.prior, self.rotation, self.shift, copy)


def about_last(plan: Plan, table: PoseTable, batch: Batch, oversampling: int) -> Plan:
    """The same search with a grid about the last poses of a table in place of all rotations."""
    how, index = plan.search, np.asarray(batch.index)
    step = how.shift_step / 2 ** (how.levels - oversampling)
    how = dataclasses.replace(how, order=how.order + how.levels - oversampling, levels=oversampling, reach=3.0,
                              shift_radius=2 * step, shift_step=step)  # fmt: skip
    rotation, shift = jnp.asarray(table.rotation[index, 0]), jnp.asarray(table.shift[index, 0])
    return Plan(how, dataclasses.replace(plan.prior, margin=np.inf), rotation, shift)


def _offsets(level: _Level, job: _Job) -> np.ndarray:
    """Shifts of a first grid, (rows, shifts, 2)."""
    lattice = shift_lattice(level.search.shift_radius, level.search.shift_step)
    centre = np.asarray(job.shift)
    return centre[:, None] + lattice.astype(centre.dtype)


def _bank(level: _Level, job: _Job, grid: Sphere) -> Any:
    """A first level against slices common to all images; where their stretches differ, at the mean stretch."""
    shift, copies, block = _offsets(level, job), np.asarray(job.copy), min(_BLOCK, grid.cells)
    code = asymmetric_cells(grid, job.rotation[:1], job.prior, block)
    stretch, turn, excess = jnp.asarray(np.asarray(job.batch.stretch).mean(0)), job.rotation[:1], level.excess
    rotation = grid.rotation(jnp.asarray(code)[None], turn)
    tile = max(1, _TILE // (len(code) * shift.shape[1]))
    parts, order = [], []
    for copy in np.unique(copies):
        bank = [
            bank_slices(level.templates, grid, code[start : start + block], turn, stretch, copy, level.limit)
            for start in range(0, len(code), block)
        ]
        sides = bank_side(level.templates, bank)
        index = np.flatnonzero(copies == copy)
        padded = np.pad(index, (0, -len(index) % tile), mode="edge")
        cells = Cells.whole(code, shift[padded])
        found = _bank_rows(level.search, level.number, level.templates, _rows(job, padded), cells, grid, rotation,
                           excess, sides, tile)  # fmt: skip
        parts.append(jax.tree.map(np.asarray, found))
        order.append(index)
    return joined(parts, order)


@partial(jax.jit, static_argnums=(0, 1, 9))
def _bank_rows(
    search: Search, number: int, templates: Templates, job: _Job, cells: Cells, grid: Sphere, rotation: Array,
    excess: Array, sides: tuple[Array, Array], tile: int,
) -> Any:  # fmt: skip
    """Scores of a few images at a time, so few that they stay in the processor's cache, and what they settle."""
    level = _Level(search, templates, number)
    log_rotation = job.prior.log_rotation(rotation, grid)

    def settle(part: tuple[_Job, Cells]) -> Any:
        job, cells = part
        left, weight, heat = image_side(templates, job.batch, cells.shift, excess, level.limit)
        log_prior = job.prior.log_shift(cells.shift, level.step)[:, :, None] + log_rotation[:, None]
        return level.settle(
            bank_scores(templates, left, weight, sides) / heat[:, None, None] + log_prior, cells, rotation
        )

    tiled = jax.tree.map(lambda leaf: leaf.reshape(-1, tile, *leaf.shape[1:]), (job, cells))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), jax.lax.map(settle, tiled))


def _about(level: _Level, job: _Job, grid: Tangent) -> Any:
    """A first level about each image's own pose."""
    shift, code, excess = _offsets(level, job), np.arange(grid.cells), level.excess
    parts, order = [], []
    for index, padded in groups(np.arange(len(shift)), _rows_at_once(level, len(shift), grid.cells)):
        cells = Cells.whole(code, shift[padded])
        parts.append(_settled(level, _rows(job, padded), grid, cells, excess))
        order.append(index)
    return joined(parts, order)


def _split(level: _Level, job: _Job, parent: RotationGrid, found: Cells) -> Any:
    """A further level: the children of the kept cells, images of like need together."""
    most = found.code.shape[1], found.shift.shape[1]
    widths = [(r, t) for r, t in _WIDTHS if r < most[0] and t < most[1]] + [most]
    need = np.full(len(found.mass), len(widths) - 1)
    for i, (r, t) in reversed(list(enumerate(widths))):
        need[(found.rotations <= r) & (found.shifts <= t)] = i
    parts, order, grid, excess = [], [], parent.finer(), level.excess
    bank = bank_for(level.templates, parent, found, job.rotation, job.batch, job.copy, level.limit)
    for i, (r, t) in enumerate(widths):
        size = _rows_at_once(level, len(need), 8 * r) if bank is None else _PACKED
        for index, padded in groups(np.flatnonzero(need == i), size):
            kept = found.take(padded, r, t)
            cells, own = children(kept, parent, 2 * level.step), _rows(job, padded)
            if bank is None:
                parts.append(_settled(level, own, grid, cells, excess))
            else:
                settled = _packed_rows(
                    level.search, level.number, level.templates, own, cells, kept.code, grid, excess, bank
                )
                parts.append(jax.tree.map(np.asarray, settled))
            order.append(index)
    return joined(parts, order)


@jax.jit
def _rows(job: _Job, index: np.ndarray) -> _Job:
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0), job)


def _settled(level: _Level, job: _Job, grid: RotationGrid, cells: Cells, excess: Array) -> Any:
    """What is settled of cells of each image's own; numpy."""
    rotation, slices = _seen(level.templates, job, grid, cells, level.limit)
    joint = _scored(level.templates, job, grid, cells, rotation, slices, excess, level.limit, level.step)
    return jax.tree.map(np.asarray, level.settle(joint, cells, rotation))


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
    left, weight, heat = image_side(templates, job.batch, cells.shift, excess, limit)
    score = own_scores(templates, left, weight, slices, rotation.shape[1])
    return _with_prior(job, grid, cells, rotation, score, heat, step)


def _with_prior(
    job: _Job, grid: RotationGrid, cells: Cells, rotation: Array, score: Array, heat: Array, step: float
) -> Array:
    """Scores at their temperature plus the log prior mass of the cells, minus infinity where none counts."""
    log_rotation = jnp.where(first(cells.code, cells.rotations), job.prior.log_rotation(rotation, grid), -jnp.inf)
    log_shift = jnp.where(first(cells.shift[..., 0], cells.shifts), job.prior.log_shift(cells.shift, step), -jnp.inf)
    return score / heat[:, None, None] + log_shift[:, :, None] + log_rotation[:, None, :]


@partial(jax.jit, static_argnums=(0, 1))
def _packed_rows(
    search: Search, number: int, templates: Templates, job: _Job, cells: Cells, parents: Array, grid: RotationGrid,
    excess: Array, bank: Bank,
) -> Any:  # fmt: skip
    """As `_settled`, one image after another, with slices from a bank."""
    level = _Level(search, templates, number)

    def settle(part: tuple[_Job, Cells, Array]) -> Any:
        job, cells, parents = part
        rotation = grid.rotation(cells.code, job.rotation)
        left, weight, heat = image_side(templates, job.batch, cells.shift, excess, level.limit)
        scores = packed_scores(
            templates, bank, job.copy[0], left[0], weight[0], parents[0], (cells.rotations[0] + 7) // 8
        )
        return level.settle(_with_prior(job, grid, cells, rotation, scores[None], heat, level.step), cells, rotation)

    tiled = jax.tree.map(lambda leaf: leaf[:, None], (job, cells, parents))
    return jax.tree.map(lambda leaf: leaf[:, 0], jax.lax.map(settle, tiled))


def _rows_at_once(level: _Level, rows: int, rotations: int) -> int:
    """Images whose gathered slices are held at once, a power of two."""
    pixels = level.templates.observation.disc.narrowed(level.limit).pixels
    most = max(1, _SLICES // (rotations * pixels))
    return min(1 << (most.bit_length() - 1), 1 << max(0, rows - 1).bit_length())
