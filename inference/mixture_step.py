"""The Gaussians that a latent may come from, under EM: where they start, and their M-step.

Both act on the latents alone, the maps being given: an image says of its latents by the two statistics h and G what it
ever can (`hetmodels.local`). What the Gaussians find of the latents' mean and covariance the maps take over.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.families.latent_mixture import LatentMixture, expected_log_density, most_likely
from hetmodels.families.protocol import Shared, mixture_of
from hetmodels.local import design_moments, linear_statistics
from hetmodels.problem import ParticleProblem
from inference.updates import expanded

_MOST = 2_000  # particles that the first Gaussians are found on
_STARTS, _ITERATIONS = 8, 100
_SETTLED = 1e-6  # nats per particle
_NAMES = ("weights", "means", "covariances")


def refitted(
    problem: ParticleProblem, shared: Shared, latent: np.ndarray, freed: bool
) -> tuple[np.ndarray | None, Shared]:
    """What the latents of a pass say of their prior.

    Args:
        problem: the problem.
        shared: shared values of the pass.
        latent: see `Sums`.
        freed: whether the maps may take over the latents' mean and covariance (PX-EM).

    Returns:
        Moments E[(1, z) (1, z)^T] for the maps to take over, (1 + dims, 1 + dims), None if they are not to; and the
        shared values of the Gaussians that are left, {} where there is one.
    """
    family, before = problem.family, mixture_of(problem.family, shared)
    if before is None:
        return (latent.sum(0) if freed else None), {}
    if any(name in problem.given for name in _NAMES):
        return None, {}
    best = most_likely(latent, before)
    with jax.enable_x64(True):
        mean, covariance = (np.asarray(v, np.float64) for v in _moments(best))
        standard = jax.tree.map(np.asarray, _standardised(best))
    if not freed and expected_log_density(latent, standard) < expected_log_density(latent, before):
        return None, {}
    own = family.with_mixture({}, jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), standard))
    return (_second(mean, covariance) if freed else None), own


_moments, _standardised = jax.jit(LatentMixture.moments), jax.jit(LatentMixture.standardised)


def _second(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """E[(1, z) (1, z)^T]."""
    point = np.append(1.0, mean)
    second = np.outer(point, point)
    second[1:, 1:] += covariance
    return second


def first_gaussians(key: Array, problem: ParticleProblem, shared: Shared, noise: Array) -> Shared:
    """Shared values whose Gaussians are fitted to at most 2,000 particles, the maps being given up to their gauge.

    The best of a few random starts; contrast is taken as 1. Gaussians that are given, or are started from, stay, as
    they do where poses are to be searched.

    Args:
        key: random key.
        problem: of a `Mixed` family.
        shared: shared values with maps whose components are not 0.
        noise: variance relative to the reference spectrum, (groups, shells).
    """
    if any(name in problem.given or name in problem.start for name in _NAMES) or problem.searches:
        return shared
    family, rows = problem.family, problem.training
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(_MOST, len(rows))).astype(int))]
    read = jax.jit(lambda shared, batch: linear_statistics(family, shared, batch, problem.observation, noise))
    parts, size = [], min(500, len(rows))
    for start in range(0, len(rows), size):
        batch = problem.batch(rows[start : start + size], size)
        kept = np.asarray(batch.weight) > 0
        parts.append([np.asarray(v)[kept] for v in read(shared, batch)])
    h, gram = (jnp.asarray(np.concatenate(v)) for v in zip(*parts, strict=True))
    best = _fitted(key, family, h, gram)
    mean, covariance = (np.asarray(v, np.float64) for v in _moments(best))
    maps, spectra = expanded(
        family.components(shared)[None],
        family.spectra(shared),
        _second(mean, covariance),
        family.masks(shared) if hasattr(family, "masks") else None,
    )
    found = family.updated(shared, maps[0], spectra, jnp.ones(1))
    return shared | family.with_mixture(found, _standardised(best))


def _fitted(key: Array, family: Any, h: Array, gram: Array) -> LatentMixture:
    """The likeliest mixture of several starts, each with its means at particles drawn at random."""
    count, dims = family.mixture, family.dims
    eye, equal = np.broadcast_to(np.eye(dims), (count, dims, dims)), np.full(count, 1 / count)
    look = jax.jit(partial(_looked, family))
    alone = np.asarray(look(LatentMixture(equal, np.zeros((count, dims)), eye), h, gram)[2], np.float64)
    found = []
    for number in range(_STARTS):
        picked = np.asarray(jax.random.choice(jax.random.fold_in(key, number), len(h), (count,), replace=False))
        mixture, value = LatentMixture(equal, alone[picked], eye / count ** (2 / dims)), -np.inf
        for _ in range(_ITERATIONS):
            before, (total, moments, _) = value, look(mixture, h, gram)
            value = float(total)
            mixture = most_likely(np.asarray(moments), mixture)
            if value - before < _SETTLED:
                break
        found.append((value, mixture))
    return max(found, key=lambda one: one[0])[1]


def _looked(family: Any, mixture: LatentMixture, h: Array, gram: Array) -> tuple[Array, Array, Array]:
    """Log evidence [nats per particle], the sums of `most_likely`, and the latents' means, at a contrast of 1."""
    found = design_moments(family, family.with_mixture({}, mixture), h, gram, None)
    assert found.each is not None
    return found.log_ratio.mean(), found.each.sum(0), found.mean
