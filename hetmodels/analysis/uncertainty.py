"""How well the maps of a run are known, voxel by voxel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hetmodels.analysis import fourier
from hetmodels.errors import UsageError
from hetmodels.families.protocol import Moving
from hetmodels.imaging.grids import Disc
from hetmodels.posterior import Posterior

DRAWS = 32  # of the shared values at most


def map_sd(posterior: Posterior, z: Any = None, covariance: np.ndarray | None = None) -> np.ndarray:
    """Standard deviation of the map at a latent, in the box of the data.

    Three parts add as variances: that of the shared values - over their draws, or for a point estimate of a linear
    family the posterior variance of the Fourier coefficients, alike in all voxels as far as views are uniform -; and
    that of the latent, if it is a particle's own, to first order in its spread.

    Args:
        posterior: the run.
        z: the latent, see `Posterior.latent`.
        covariance: of the latent, (dims, dims); none where the point is exact.

    Raises:
        UsageError: if neither draws nor structure tell how well the maps are known.
    """
    size, spacing = posterior.box()
    variance = _over_draws(posterior, z) if not posterior.point else np.full((size,) * 3, _of_point(posterior, z))
    if covariance is not None and np.size(covariance):
        values, vectors = np.linalg.eigh(covariance)
        centre = jnp.asarray(z, jnp.float32)

        def density(at: jax.Array) -> jax.Array:
            return posterior.volume_at(at).density(size, spacing)

        for value, vector in zip(np.maximum(values, 0), vectors.T, strict=True):
            slope = jax.jvp(density, (centre,), (jnp.asarray(vector, jnp.float32),))[1]
            variance = variance + value * np.asarray(slope) ** 2
    return np.sqrt(variance).astype(np.float32)


def _over_draws(posterior: Posterior, z: Any) -> np.ndarray:
    chains, draws = posterior.chains, posterior.draws
    family, latent = posterior.family, posterior.latent(z)
    chosen = np.unique(np.linspace(0, chains * draws - 1, min(DRAWS, chains * draws)).astype(int))
    maps = []
    for number in chosen:
        shared = {k: jnp.asarray(v[number // draws, number % draws]) for k, v in posterior.shared.items()}
        maps.append(np.asarray(family.volume(shared, latent).density(*posterior.box()), float))
    return np.var(maps, axis=0, ddof=1)


def _of_point(posterior: Posterior, z: Any) -> float:
    """b(z)ᵀ (H E[b bᵀ] + T)⁻¹ b(z) summed over Fourier space: H from the images' mean information, T the prior."""
    family, known = posterior.family, posterior.extra.get("information")
    still = hasattr(family, "components") and hasattr(family, "spectra") and not isinstance(family, Moving)
    if known is None or not still:
        raise UsageError(
            f"standard deviation: a point estimate of {type(family).__name__} does not tell how well its maps are "
            "known; fit it by an engine that draws samples."
        )
    size = posterior.box()[0]
    disc, index = Disc(size), fourier.shell_index(size)
    voxels = fourier.shell_sum(np.ones(index.shape), index, disc.shells)
    training = int((~posterior.local["held_out"].astype(bool)).sum())
    data = 2 * training * disc.shell_counts * np.asarray(known, float)[: disc.shells] / voxels
    shared = posterior.shared_point()
    prior = 1 / np.maximum(np.asarray(family.spectra(shared), float), 1e-30)
    second, design = _second_moment(posterior), np.ravel(np.asarray(family.design(posterior.latent(z)), float))
    total = 0.0
    for k in range(1, disc.shells):
        precision = data[k] * second + np.diag(prior[:, k])
        total += voxels[k] * float(design @ np.linalg.solve(precision, design))
    return total / size**4


def _second_moment(posterior: Posterior) -> np.ndarray:
    """Mean of E[b bᵀ] over training particles, (components, components)."""
    family, keep = posterior.family, ~posterior.local["held_out"].astype(bool)
    shared = posterior.shared_point()
    if hasattr(family, "latent_covariance"):
        mean, covariance = posterior.local["mean"][keep], posterior.local["covariance"][keep]
        b = np.column_stack([np.ones(len(mean)), mean]).astype(float)
        second = b.T @ b / len(b)
        second[1:, 1:] += covariance.mean(0)
        return second
    if hasattr(family, "grids"):
        design = np.asarray(jax.vmap(family.design)(family.grids(shared)[0]), float)
        share = posterior.local["responsibilities"][keep].mean(0)
        return np.einsum("n,nl,nm->lm", share, design, design)
    design = np.ravel(np.asarray(family.design(None), float))
    return np.outer(design, design)
