"""Latents of another program scored under our likelihood: held-out densities that compare with those of our fits.

Another program's latents say which particles are alike. Around some of them the training particles are averaged with
kernel weights, which gives maps that owe to that program nothing but the neighbourhoods (the kernel regression of
Gilles and Singer 2025, PNAS 122, at one bandwidth). The mixture of these maps, its weights by maximum likelihood on
the training particles, is a density of images: held-out particles are scored by it as by any family, their latents
integrated over the maps and the other program's own values for them not used.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hetmodels.analysis.image_check import check_images
from hetmodels.analysis.map_graph import representatives
from hetmodels.analysis.mixtures import mixture_weights
from hetmodels.data.particles import Particles
from hetmodels.errors import DataError
from hetmodels.families.classes import Classes
from hetmodels.observation import Known, Radial
from hetmodels.posterior import Posterior
from hetmodels.problem import ParticleProblem

FEWEST = 100  # particles that a map is made of, effectively
ROUNDS = 2  # of noise and weights
LEAST = 1e-6  # weight of a map


@dataclasses.dataclass(frozen=True)
class Imported:
    """Stands where a fit has its engine.

    Attributes:
        source: file of the latents.
        maps: number of maps.
        seed: of the choice of particles that the maps are made around.
    """

    source: str
    maps: int = 16
    seed: int = 0


def kernel_weights(latents: np.ndarray, centre: np.ndarray, effective: float) -> np.ndarray:
    """Gaussian weights about a point, as wide as keeps a number of particles effectively: (sum w)² / sum w².

    Args:
        latents: in units in which distances count alike, (n, dims).
        centre: the point, (dims,).
        effective: number of particles.
    """
    square = ((latents - centre) ** 2).sum(1)
    square = square - square.min()
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(-square / 2 * np.exp(-2 * middle))
        low, high = (middle, high) if weights.sum() ** 2 < effective * (weights**2).sum() else (low, middle)
    return weights


def rescored(latents: np.ndarray, particles: Particles, base: Posterior, about: Imported) -> Posterior:
    """The posterior of the mixture of maps that another program's latents give.

    Args:
        latents: of all particles in the order of the table, (N, dims).
        particles: with their held-out ones.
        base: a run of one map on the same particles, for the noise to begin with.
        about: where the latents come from, and how many maps.

    Raises:
        DataError: if latents and particles differ in number, latents are not finite, or are all the same.
    """
    latents = np.asarray(latents, float)
    if len(latents) != len(particles) or not np.isfinite(latents).all():
        raise DataError(
            f"{about.source}: latents must be finite and one row for each of the {len(particles)} particles, found "
            f"{len(latents)} rows. Give the particles that the other program was given, in its order."
        )
    if not np.ptp(latents, axis=0).any():
        raise DataError(f"{about.source}: all latents are equal, there is nothing to score.")
    from inference.fitting import _noise_of, make_problem
    from inference.weighted import Reconstruction

    fraction = float(particles.held_out.mean())
    solve, key = Reconstruction.of(base, particles), jax.random.key(about.seed)
    maps = _maps(latents, particles, solve, about)
    problem = make_problem(
        Classes(len(maps)), particles, pose=Known(), noise=Radial(), contrast=None, outliers=None, halves=False,
        holdout=fraction, start=None, given=None,
    )  # fmt: skip
    assert isinstance(problem, ParticleProblem)
    noise = _noise_of(jnp.asarray(base.value("noise")), particles.groups)
    weights = jnp.full(len(maps), 1 / len(maps))
    shared = problem.shared(problem.initial(key)) | {"maps": jnp.asarray(maps), "weights": weights, "noise": noise}
    found = _posterior(problem, shared, about, key)
    for _ in range(ROUNDS):
        shared = shared | {"weights": _weights(found), "noise": _noise(found, particles)}
        found = _posterior(problem, shared, about, key)
    return found


def _maps(
    latents: np.ndarray, particles: Particles, solve: Callable[[np.ndarray], np.ndarray], about: Imported
) -> np.ndarray:
    """Maps of the training particles around some of them, (M, N, N, N)."""
    train = np.flatnonzero(~particles.held_out)
    spread = latents[train].std(0)
    scaled = (latents[train] - latents[train].mean(0)) / np.where(spread > 0, spread, 1)
    rows = representatives(scaled, about.maps, about.seed)
    effective = min(max(FEWEST, len(train) / len(rows)), len(train) / 2)
    maps = []
    for row in rows:
        weights = np.zeros(len(particles))
        weights[train] = kernel_weights(scaled, scaled[row], effective)
        maps.append(solve(np.where(weights < 1e-3, 0, weights)))
    return np.stack(maps)


def _weights(found: Posterior) -> jax.Array:
    """Weights of the maps by maximum likelihood on the training particles."""
    train = ~found.local["held_out"].astype(bool)
    density = np.log(np.maximum(found.local["responsibilities"][train], 1e-30)) - np.log(found.value("weights"))
    weights = np.maximum(mixture_weights(density).weights, LEAST)
    return jnp.asarray(weights / weights.sum(), jnp.float32)


def _noise(found: Posterior, particles: Particles) -> jax.Array:
    """The noise times what is left of the training images over it, shell by shell."""
    ratio = np.nan_to_num(check_images(found, particles).training, nan=1.0)
    return jnp.asarray(found.value("noise") * np.where(ratio > 0, ratio, 1.0), jnp.float32)


def _posterior(problem: ParticleProblem, shared: dict, about: Imported, key: jax.Array) -> Posterior:
    from inference.fitting import _provenance, local_posterior

    local, _, seen = local_posterior(problem, [shared], key)
    values = {name: np.asarray(value)[None, None] for name, value in shared.items()}
    facts = _provenance(problem, about) | {"complete": True}
    return Posterior(problem.family, values, True, local, provenance=facts, extra=seen)
