"""The E-step where poses are unknown: every image counts at its likeliest poses, with their posterior mass.

The search fixes p(pose | image); within a pose the E-step is the one of known poses. The mass beyond the poses that
count is spread over them, so that an image weighs as much as any other: with a fixed grid, a fixed band and all poses
counted, expectation-maximisation never lowers the log posterior; otherwise it does so up to what is left out.
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
from hetmodels.errors import UsageError
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.poses import finest_order
from hetmodels.imaging.symmetry import elements
from hetmodels.observation import Observation, split_junk
from hetmodels.scoring import Templates
from hetmodels.selection import PoseTable
from inference.expectation import Mode, Sums

_THRESHOLD = 0.143  # of the FSC, for the band of the next search
_LOWEST = 4  # Fourier pixels of the narrowest band
_VISIBLE = 1e-4  # power of a reference, relative to its strongest shell, that counts as its resolution


def first_table(problem: Any, components: Array) -> Any:
    """What the search starts from: no poses, and the band that the starting maps have; () for known poses.

    Without maps the band is 0: the first pass is a reconstruction at the file's poses.
    """
    if not problem.searches:
        return ()
    pose = problem.observation.pose
    table, blank = pose.table(problem), not bool(jnp.any(components))
    if blank and pose.placed:
        return dataclasses.replace(table, limit=np.asarray(0))
    if blank:
        raise UsageError(
            "em: unknown poses need maps to start from; give --reference MAP.mrc (or start=), low-passed by --ini-high."
        )
    power = np.asarray(Ball(components.shape[-1]).power(components)).max(0)
    seen = np.flatnonzero(power >= _VISIBLE * power.max())
    return dataclasses.replace(table, limit=_band(problem.observation, int(seen.max())))


def _band(obs: Observation, shell: int) -> np.ndarray:
    """The band to search with where maps are good up to a shell: some shells more, in few different sizes."""
    top = obs.disc.limit
    grain = max(-(-top // 8), min(3, -(-top // 5)))
    wanted = shell + max(2, min(10, top // 5))
    return np.asarray(min(top, max(_LOWEST, -(-wanted // grain) * grain)))


def advanced(problem: Any, table: Any, fsc: Array) -> tuple[Any, bool]:
    """The table for the next pass, its band from the resolution and its grid finer where that has stalled.

    Returns:
        The table, and whether the search has settled: the finest grid, and no better resolution in two passes.
    """
    if not problem.searches:
        return table, True
    good = np.append(np.asarray(fsc)[1:] > _THRESHOLD, False)
    shell = int(np.argmin(good))
    waited = 0 if shell > int(table.shell) else int(table.waited) + 1
    levels, limit, pose = int(table.levels), _band(problem.observation, shell), problem.observation.pose
    finest = finest_order(int(limit)) - pose.order
    if waited and levels < finest:
        levels, waited = levels + 1, 0
    shell = max(shell, int(table.shell))
    numbers = {"levels": levels, "limit": limit, "shell": shell, "waited": waited}
    table = dataclasses.replace(table, **{name: np.asarray(value) for name, value in numbers.items()})
    table = table.learned(problem.training, pose.symmetry, getattr(pose, "direction_counts", None))
    return table, levels >= finest and waited >= 2


def learned_poses(table: Any) -> dict[str, Array]:
    """What was learned of all poses, by name of the shared value: `directions`, see `PosePrior`."""
    if not isinstance(table, PoseTable) or table.directions is None:
        return {}
    return {"directions": jnp.asarray(table.directions)}


def search_report(problem: Any, table: Any) -> dict[str, Any]:
    """What a pass says of its search; {} for known poses."""
    if not problem.searches:
        return {}
    seen = table.weight[:, 0] > 0
    discarded, order = (float(values[seen].mean()) for values in (table.discarded, table.order))
    return {"search_order": order, "search_band": int(table.limit), "discarded": discarded}


def alike(parts: list[Batch], symmetry: str) -> Iterator[Batch]:
    """Every image at all the poses that a symmetry makes alike, their weights shared evenly.

    So maps stay symmetric, and gain from every image what all its alike views say.
    """
    group = elements(symmetry)
    for part in parts:
        for element in group:
            rotation = _turned(part.rotation, element) if len(group) > 1 else part.rotation
            yield dataclasses.replace(part, rotation=rotation, weight=part.weight / len(group))


@jax.jit
def _turned(rotation: Array, element: Array) -> Array:
    return jnp.matmul(rotation, element.astype(rotation.dtype), precision=jax.lax.Precision.HIGHEST)


def weighted_poses(
    key: Array, mode: Mode, family: Any, known: tuple, tables: Array, batch: Batch, table: PoseTable
) -> tuple[list[Batch], Sums]:
    """Search a batch, and the batches of (image, pose) pairs that its E-step is over, all of one size.

    Args:
        key: random key of the grid's place.
        mode: of the E-step.
        family: the family.
        known: shared values, noise, share of junk.
        tables: Fourier tables of the maps.
        batch: the images.
        table: the poses found so far, filled in place.

    Returns:
        The batches, their weights summing to the images' probabilities of being no junk, and the sums that count
        images: log evidence, junk and number.
    """
    obs, (shared, noise, junk) = mode.observation, known
    templates = Templates(family, shared, noise, tables, obs, mode.pairs)
    found = obs.pose.refresh(key, templates, batch, table, batch.half if mode.halves else None)
    real = np.asarray(batch.weight) > 0
    part = jax.tree.map(lambda leaf: leaf[real], found)
    table.fill(np.asarray(batch.index)[real], part)
    total, clean = _mixed(obs, batch, jnp.asarray(found.log_evidence), noise, junk)
    weight = found.weight[:, : obs.pose.poses]
    weight = weight / weight.sum(1, keepdims=True) * (np.asarray(clean) * np.asarray(batch.weight))[:, None]
    pairs = list(_pairs(batch, found, weight))
    zero, junk_share = np.zeros(()), (1 - weight.sum(1))[real].sum()
    count = np.asarray(real.sum())
    sums = Sums(np.asarray(total, np.float64).sum(), zero, zero, zero, np.asarray(junk_share), count, zero)
    return pairs, sums


@partial(jax.jit, static_argnums=0)
def _mixed(obs: Observation, batch: Batch, evidence: Array, noise: Array, junk: Array | None) -> tuple[Array, Array]:
    """Log p(y) - log p(y | noise of the reference spectrum), times the row's weight, and the probability of no junk."""
    variance = obs.pixel_variance(noise, batch.group)
    total, clean = split_junk(evidence, obs, batch, variance, junk)
    return (total + obs.zero_ratio(batch.images, variance)) * batch.weight, clean


def _pairs(batch: Batch, found: Any, weight: np.ndarray) -> Iterator[Batch]:
    """Images at their poses; alike rotations stand together, so that their slices are back-projected as one."""
    rows, columns = np.nonzero(weight)
    turned, half = np.asarray(found.rotation)[rows, columns].reshape(len(rows), 9), np.asarray(batch.half)[rows]
    order = np.lexsort((*turned.T[[1, 0, 8]], half))
    rows, columns, size = rows[order], columns[order], len(weight)
    for start in range(0, len(rows), size):
        r, c = rows[start : start + size], columns[start : start + size]
        pad = (0, size - len(r))
        share = np.pad(weight[r, c], pad)
        r, c = np.pad(r, pad, mode="edge"), np.pad(c, pad, mode="edge")
        yield _placed(batch, r, found.rotation[r, c], found.shift[r, c], share)


@jax.jit
def _placed(batch: Batch, rows: Array, rotation: Array, shift: Array, share: Array) -> Batch:
    part = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), batch)
    kind = batch.weight.dtype
    return dataclasses.replace(
        part, rotation=rotation.astype(kind), shift=shift.astype(kind), weight=share.astype(kind)
    )
