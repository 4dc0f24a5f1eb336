"""Posterior predictive checks on the images: is what the model leaves of them noise, and does the heterogeneity pay?

Where the model is right, a particle's latents drawn from their posterior leave residuals |y - f(z)|^2 whose mean is
the noise variance in every shell and every view: E over data and posterior of |y - f|^2 / sigma^2 is 1 (Rubin 1984;
Gelman, Meng and Stern 1996). For images that did not train the shared values the mean lies above 1 by the error of the
maps, for images that did below it by their share in them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.analysis.compare import clustered_se
from hetmodels.data.batch import Batch
from hetmodels.data.particles import Particles
from hetmodels.errors import DataError
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.families.protocol import Frame, Linear, Moving, shown
from hetmodels.imaging.ball import Ball
from hetmodels.local import (
    centred_images,
    collapsed_ratio,
    component_lattice,
    component_slices,
    design_moments,
    mixing_pairs,
    shell_statistics,
)
from hetmodels.model import Observed, integrable, per_particle, render
from hetmodels.moving import moving_power
from hetmodels.observation import Contrast, Known, Observation, Outliers, Radial
from hetmodels.posterior import Posterior

ROWS, BATCH = 2000, 250
_LATENTS = ("mean", "covariance", "responsibilities", "contrast")


@dataclasses.dataclass(frozen=True)
class ImageCheck:
    """What is left of some images; junk is left out.

    Attributes:
        frequency: of each shell [1/Å], (shells,); shell 0 is not measured and NaN below.
        training, held_out: mean residual power over the noise variance, (shells,); NaN where there are no such images.
        band: half width of the range in which 99.9 % of the held-out values fall where the model is right, (shells,).
        rows: the particles looked at, (n,).
        of_image: the same mean for each image, over all its pixels, (n,).
        view: direction of view of each in the frame of the map, (n, 3).
        gain: by how many nats a held-out image is more probable than under one volume for all, the mean of the run's
            volumes, on average; None if poses were inferred or there is nothing to compare.
        gain_se: its standard error, over particles or, if larger, over micrographs.
    """

    frequency: np.ndarray
    training: np.ndarray
    held_out: np.ndarray
    band: np.ndarray
    rows: np.ndarray
    of_image: np.ndarray
    view: np.ndarray
    gain: float | None
    gain_se: float | None


def check_images(posterior: Posterior, particles: Particles, *, rows: int = ROWS, seed: int = 0) -> ImageCheck:
    """Compare a posterior with the images it was fitted to.

    Args:
        posterior: of a family.
        particles: the same particles.
        rows: images looked at, half of them held out if there are as many, drawn at random.
        seed: of that draw and of the draws of latents.

    Raises:
        DataError: if these are not the particles of the fit.
    """
    if posterior.provenance.get("data_hash") != particles.data_hash:
        raise DataError(f"{particles!r}: the table or the images are not those of the fit. Restore them, or fit again.")
    local, facts = posterior.local, posterior.provenance
    chosen = _chosen(local, rows, np.random.default_rng(seed))
    observation, halves = _observation(posterior, particles), bool(facts.get("halves"))
    shared, family = posterior.shared_point(), posterior.family
    exact = isinstance(family, Linear) and integrable(family, shared)
    power = jax.jit(_exact_power(family, observation) if exact else _drawn_power(posterior, observation))
    mean = _mean_volume(posterior) if str(facts.get("pose", "Known")).startswith("Known") else None
    single = None if mean is None else jax.jit(_evidence_of_one(*mean, observation))
    residual, view, alone, key = [], [], [], jax.random.key(seed)
    for number, batch in enumerate(particles.batches(chosen, min(BATCH, len(chosen)))):
        batch = _placed(batch, local, observation.groups, halves)
        keep, index = np.asarray(batch.weight) > 0, np.asarray(batch.index)
        latents = {name: jnp.asarray(local[name][index]) for name in _LATENTS}
        residual.append(np.asarray(power(shared, batch, latents, jax.random.fold_in(key, number)), float)[keep])
        view.append(np.asarray(batch.rotation)[keep, 2])
        if single is not None:
            alone.append(np.asarray(single(shared, batch), float)[keep])
    gain = _gain(local, chosen, np.concatenate(alone)) if alone else (None, None)
    return _summary(particles, chosen, np.concatenate(residual), np.concatenate(view), gain)


def _chosen(local: dict[str, np.ndarray], rows: int, rng: np.random.Generator) -> np.ndarray:
    """Rows to look at: no junk, half of them held out as far as there are."""
    clean = local["outlier"] < 0.5
    held = local["held_out"].astype(bool)
    parts = [np.flatnonzero(clean & held), np.flatnonzero(clean & ~held)]
    first = rng.permutation(parts[0])[: rows // 2]
    return np.sort(np.concatenate([first, rng.permutation(parts[1])[: rows - len(first)]]))


def _observation(posterior: Posterior, particles: Particles) -> Observation:
    facts, shared = posterior.provenance, posterior.shared
    contrast = str(facts.get("contrast", "None"))
    sd = None if contrast == "None" else Contrast(float(contrast.partition("sd=")[2].rstrip(")")))
    groups, count = shared["noise"].shape[2], int((~particles.held_out).sum())
    junk = Outliers() if "junk" in shared else None
    return Observation(particles.disc, particles.spacing, groups, count, Known(), Radial(), sd, junk)


def _placed(batch: Batch, local: dict[str, np.ndarray], groups: int, halves: bool) -> Batch:
    """The batch at the inferred poses, with its noise group."""
    index = np.asarray(batch.index)
    rotation, shift = (jnp.asarray(local[name][index], jnp.float32) for name in ("rotation", "shift"))
    group = batch.group + (groups // 2) * batch.half if halves else batch.group
    return dataclasses.replace(batch, rotation=rotation, shift=shift, group=group)


Power = Callable[[dict[str, Array], Batch, dict[str, Array], Array], Array]


def _exact_power(family: Any, observation: Observation) -> Power:
    """E|y - f|^2 per shell over the noise variance, summed over the pixels: latents integrated in closed form."""
    if isinstance(family, Moving):
        return lambda shared, batch, latents, key: (
            moving_power(family, shared, batch, observation, shared["noise"]) / shared["noise"][batch.group]
        )

    def power(shared: dict[str, Array], batch: Batch, latents: dict[str, Array], key: Array) -> Array:
        lattice = component_lattice(family)
        slices, _ = component_slices(lattice, lattice.table(shown(family, shared)), batch, observation)
        images, pairs = centred_images(batch, observation), mixing_pairs(family, shared)
        found = shell_statistics(images, slices, batch.ctf, observation.disc, pairs)
        variance = shared["noise"][batch.group]
        design = design_moments(family, shared, *found.weighted(variance), observation.contrast)
        return found.expected_power(design.first, design.second) / variance

    return power


def _drawn_power(posterior: Posterior, observation: Observation) -> Power:
    """The same with latents drawn once from their posterior, taken as Gaussian or as the nodes' probabilities."""
    family = posterior.family

    def power(shared: dict[str, Array], batch: Batch, latents: dict[str, Array], key: Array) -> Array:
        rows, dims = latents["mean"].shape
        if dims:
            root = jnp.linalg.cholesky(latents["covariance"] + 1e-12 * jnp.eye(dims))
            z = latents["mean"] + jnp.einsum("nij,nj->ni", root, jax.random.normal(key, (rows, dims)))
        elif hasattr(family, "grids"):
            log_weights = jnp.log(latents["responsibilities"])
            z = family.grids(shared)[0][jax.random.categorical(key, log_weights)]
        volume = (
            per_particle(lambda one: family.volume(shared, posterior.latent(one)), z)
            if dims or hasattr(family, "grids")
            else family.volume(shared, None)
        )
        model = render(volume, Observed(batch, observation, shared["noise"], None), {})
        rest = batch.images - latents["contrast"][:, None] * model
        return observation.disc.shell_sum(rest.real**2 + rest.imag**2) / shared["noise"][batch.group]

    return power


def _mean_volume(posterior: Posterior) -> tuple[Homogeneous, np.ndarray] | None:
    """One volume for all particles, the mean of those the run gives them; None where it gives them only one."""
    family, local = posterior.family, posterior.local
    if local["mean"].shape[1]:
        values = posterior.map_at(local["mean"].mean(0))
    elif hasattr(family, "grids") and local["responsibilities"].shape[1] > 1:
        nodes = family.grids(posterior.first())[0]
        weights = local["responsibilities"][local["outlier"] < 0.5].mean(0)
        values = np.tensordot(weights, np.stack([posterior.map_at(node) for node in nodes]), 1)
    else:
        return None
    size, spacing = posterior.box()
    return Homogeneous(getattr(family, "order", 1), Frame(size, spacing, (1.0,) * Ball(size).shells)), values


def _evidence_of_one(
    family: Homogeneous, volume: np.ndarray, observation: Observation
) -> Callable[[dict[str, Array], Batch], Array]:
    """log p(y | one volume) - log p(y | noise only) per row."""

    def evidence(shared: dict[str, Array], batch: Batch) -> Array:
        one = {"map": jnp.asarray(volume), "map_tau2": jnp.ones(Ball(len(volume)).shells)}
        return collapsed_ratio(family, one, batch, observation, shared["noise"], shared.get("junk"))

    return evidence


def _gain(local: dict[str, np.ndarray], chosen: np.ndarray, alone: np.ndarray) -> tuple[float | None, float | None]:
    held = local["held_out"].astype(bool)[chosen]
    if held.sum() < 2:
        return None, None
    gain = (local["log_evidence"][chosen] - alone)[held]
    se = float(gain.std(ddof=1) / np.sqrt(len(gain)))
    by_unit = clustered_se(gain, local["unit"][chosen][held]) if "unit" in local else None
    return float(gain.mean()), se if by_unit is None else max(se, by_unit / len(gain))


def _summary(
    particles: Particles,
    chosen: np.ndarray,
    power: np.ndarray,
    view: np.ndarray,
    gain: tuple[float | None, float | None],
) -> ImageCheck:
    counts, held = particles.disc.shell_counts, particles.held_out[chosen]
    pixels = np.where(counts > 0, counts, np.nan)
    none = np.full(len(pixels), np.nan)
    training, tested = (power[part].mean(0) / pixels if part.any() else none for part in (~held, held))
    band = 3.291 / np.sqrt(max(int(held.sum()), 1) * pixels)
    frequency = np.arange(len(pixels)) / (particles.size * particles.spacing)
    return ImageCheck(frequency, training, tested, band, chosen, power.sum(1) / counts.sum(), view, *gain)
