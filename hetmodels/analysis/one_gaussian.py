"""Latents as they would be under one Gaussian prior, where a mixture was the prior: what the images alone say of them.

An image at a known pose says exp(s.z - z.P z / 2) of its latents. Times a mixture of Gaussians that is an exponential
family in (z, z z^T) whose mean and covariance determine s and P uniquely; they are found by Newton's method on its
convex log partition function. Densities, clusters and observability divide a Gaussian prior out, and so are not told
twice of lumps that the mixture has already put in.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.families.latent_mixture import LatentMixture
from hetmodels.families.protocol import mixture_of
from hetmodels.posterior import Posterior

_ROUNDS = 60
_STEPS = (1.0, 0.5, 0.2, 0.05, 0.01)  # parts of a Newton step that are tried
_AT_ONCE = 4000  # particles


def under_one_gaussian(posterior: Posterior) -> tuple[np.ndarray, np.ndarray]:
    """Means (N, dims) and covariances (N, dims, dims) of the latents under the prior's own mean and covariance.

    They are those of the run where its prior is no mixture of Gaussians.
    """
    mean, covariance = (np.asarray(posterior.local[name], float) for name in ("mean", "covariance"))
    mixture = None if posterior.family is None else mixture_of(posterior.family, posterior.shared_point())
    if mixture is None:
        return mean, covariance
    slope, precision = said_by_images(mean, covariance, posterior.local["responsibilities"], mixture)
    own = np.linalg.inv(precision + np.eye(mean.shape[1]))
    return np.einsum("nij,nj->ni", own, slope), own


def said_by_images(
    mean: np.ndarray, covariance: np.ndarray, responsibilities: np.ndarray, mixture: LatentMixture
) -> tuple[np.ndarray, np.ndarray]:
    """s (N, dims) and P (N, dims, dims), none negative, of posteriors under a mixture.

    Along axes in which P comes out negative, as it may where a contrast was integrated too, an image says nothing.

    Args:
        mean, covariance: of each posterior.
        responsibilities: of the Gaussians, (N, K): the likeliest, or the prior, is where Newton's method starts.
        mixture: the prior.
    """
    dims = mean.shape[1]
    parts = [np.asarray(v, np.float64) for v in (mixture.weights, mixture.means, mixture.covariances)]
    inverse, best = np.linalg.inv(parts[2]), responsibilities.argmax(1)
    precision = _not_negative(np.linalg.inv(covariance) - inverse[best])
    slope = np.einsum("nij,nj->ni", precision + inverse[best], mean) - np.einsum("nij,nj->ni", inverse, parts[1])[best]
    rows, columns = np.triu_indices(dims)
    count = np.where(rows == columns, 1.0, 2.0)
    second = covariance + mean[:, :, None] * mean[:, None, :]
    target = np.concatenate([mean, -0.5 * count * second[:, rows, columns]], axis=1)
    theta = np.concatenate([slope, precision[:, rows, columns]], axis=1)
    with jax.enable_x64(True):
        known = tuple(map(jnp.asarray, parts))
        found = [
            np.asarray(_solved(theta[i : i + _AT_ONCE], target[i : i + _AT_ONCE], known))
            for i in range(0, len(theta), _AT_ONCE)
        ]
    theta = np.concatenate(found)
    full = np.zeros((len(theta), dims, dims))
    full[:, rows, columns] = full[:, columns, rows] = theta[:, dims:]
    values, vectors = np.linalg.eigh(full)
    kept = np.einsum("nik,nk,njk->nij", vectors, (values > 0).astype(float), vectors)
    return np.einsum("nij,nj->ni", kept, theta[:, :dims]), _not_negative(full)


def _not_negative(matrices: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((matrices + np.swapaxes(matrices, 1, 2)) / 2)
    return np.einsum("nik,nk,njk->nij", vectors, np.maximum(values, 0), vectors)


def _log_partition(theta: Array, known: tuple[Array, Array, Array]) -> Array:
    """log sum_k w_k ∫ N(z; m_k, S_k) exp(s.z - z.P z / 2) dz; NaN where it is infinite."""
    weights, means, covariances = known
    dims = means.shape[1]
    rows, columns = np.triu_indices(dims)
    upper = jnp.zeros((dims, dims)).at[rows, columns].set(theta[dims:])
    given = upper + upper.T - jnp.diag(jnp.diag(upper))

    def alone(weight: Array, mean: Array, covariance: Array) -> Array:
        inverse = jnp.linalg.inv(covariance)
        root = jnp.linalg.cholesky(given + inverse)
        half = jax.scipy.linalg.solve_triangular(root, theta[:dims] + inverse @ mean, lower=True)
        size = jnp.log(jnp.diag(root)).sum() + 0.5 * jnp.linalg.slogdet(covariance)[1]
        return jnp.log(weight) + 0.5 * (half @ half - mean @ inverse @ mean) - size

    return jax.scipy.special.logsumexp(jax.vmap(alone)(weights, means, covariances))


@jax.jit
def _solved(theta: Array, target: Array, known: tuple[Array, Array, Array]) -> Array:
    """Natural parameters (rows, …) at which the mean of the sufficient statistics is the target."""

    def one(start: Array, target: Array) -> Array:
        def height(at: Array) -> Array:
            value = _log_partition(at, known) - at @ target
            return jnp.where(jnp.isfinite(value), value, jnp.inf)

        def newton(_: int, at: Array) -> Array:
            slope, curvature = jax.grad(height)(at), jax.hessian(height)(at)
            move = -jnp.linalg.solve(curvature + 1e-12 * jnp.trace(curvature) * jnp.eye(len(at)), slope)
            tried = at + jnp.asarray(_STEPS)[:, None] * jnp.where(jnp.isfinite(move), move, 0.0)
            heights = jax.vmap(height)(tried)
            best = jnp.argmin(heights)
            return jnp.where(heights[best] < height(at), tried[best], at)

        nothing = jnp.zeros_like(start)  # the prior itself
        begun = jnp.where(height(start) < height(nothing), start, nothing)
        return jax.lax.fori_loop(0, _ROUNDS, newton, begun)

    return jax.vmap(one)(theta, target)
