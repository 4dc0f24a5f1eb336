"""What comparisons of runs need of each particle: its predictive density on a scale that all runs share.

`Local.log_evidence` is relative to noise alone of the run's own spectrum, which differs from run to run. The reference
spectrum belongs to the data: relative to it, densities of two runs on the same data can be subtracted.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.model import collapsible
from hetmodels.plain import Sites
from hetmodels.problem import ParticleProblem

BANDS = 8  # at most
UNSEEN = 1e20  # noise variance of shells that are left out
MOST = 1000  # held-out particles whose score is broken down

Infer = Callable[[Array, Sites, Batch], Any]


def reference_ratio(problem: ParticleProblem, noise: Array, batch: Batch) -> np.ndarray:
    """log p(y | noise only) - log p(y | noise of the reference spectrum), float64 (rows,).

    Args:
        problem: gives the measurement.
        noise: variance relative to the reference spectrum, (groups, shells).
        batch: the particles.
    """
    with jax.enable_x64(True):
        images = jnp.asarray(batch.images).astype(jnp.complex128)
        variance = problem.observation.pixel_variance(jnp.asarray(noise).astype(jnp.float64), batch.group)
        return np.asarray(problem.observation.zero_ratio(images, variance))


def information(problem: ParticleProblem, noise: Array, batch: Batch) -> np.ndarray:
    """Sum over rows of C²/sigma² at each shell, float64 (shells,): what a squared coefficient of a slice counts there.

    Arguments as in `reference_ratio`; padding does not count.
    """
    disc = problem.observation.disc
    squared = np.asarray(batch.weight, float) @ np.asarray(
        batch.ctf**2 / problem.observation.pixel_variance(noise, batch.group), float
    )
    return np.bincount(disc.shell, squared, disc.shells) / np.maximum(disc.shell_counts, 1)


def mixed(densities: np.ndarray) -> np.ndarray:
    """The log of the mean of densities over draws, from their logs (draws, …), float64."""
    return np.logaddexp.reduce(densities.astype(np.float64), axis=0) - np.log(len(densities))


def by_band(problem: ParticleProblem, draws: list[Sites], infer: Infer, key: Array, rows: int) -> dict[str, np.ndarray]:
    """The predictive density of held-out particles, factor by factor from coarse to fine shells.

    p(y) = prod_b p(y_b | y_1 … y_{b-1}) with y_b the pixels of band b: each factor is the ratio of two evidences, of
    images cut at two bands, latents integrated in both. They sum to `log_predictive` of the particle.

    Args:
        problem: of a family whose latents integrate in closed form at known poses.
        draws: shared values.
        infer: `problem.infer`, compiled for batches of `rows`.
        key: random key.
        rows: particles of a batch.

    Returns:
        `predictive_bands` (held out, bands), relative to noise of the reference spectrum; `predictive_rows`, which
        particles; `predictive_limits`, the last shell of each band. Empty where nothing is held out or the latents do
        not integrate in closed form.
    """
    held = np.flatnonzero(problem.particles.held_out)
    if not len(held) or problem.searches or not collapsible(problem.family, draws[0], problem.observation):
        return {}
    held = held[np.unique(np.linspace(0, len(held) - 1, min(MOST, len(held))).astype(int))]
    limit = problem.observation.disc.limit
    limits = np.unique(np.linspace(0, limit, min(BANDS, limit) + 1).round().astype(int))[1:]
    parts = [problem.batch(held[start : start + rows], rows) for start in range(0, len(held), rows)]
    found = np.concatenate([_cumulative(problem, draws, infer, key, batch, limits) for batch in parts])
    increments = np.diff(found, axis=1, prepend=0.0)
    return {"predictive_bands": increments, "predictive_rows": held, "predictive_limits": limits}


def _cumulative(
    problem: ParticleProblem, draws: list[Sites], infer: Infer, key: Array, batch: Batch, limits: np.ndarray
) -> np.ndarray:
    """log p(y up to each limit) relative to the reference spectrum, (rows, limits), padding dropped."""
    keep, shell = np.asarray(batch.weight) > 0, problem.observation.disc.shell
    columns = []
    for limit in limits:
        cut = dataclasses.replace(batch, images=jnp.where(shell <= limit, batch.images, 0))
        each = []
        for shared in draws:
            noise = shared["noise"]
            inside = np.arange(noise.shape[1]) <= limit
            unseen = shared | {"noise": jnp.where(inside, noise, UNSEEN)}
            zero = reference_ratio(problem, jnp.where(inside, noise, 1.0), cut)
            each.append(np.asarray(infer(key, unseen, cut).log_evidence, np.float64) + zero)
        columns.append(mixed(np.stack(each))[keep])
    return np.stack(columns, axis=1)
