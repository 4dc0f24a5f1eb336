"""A mixture of Gaussians as the prior of latent coordinates that have no origin, axes or units of their own.

Latents of linear maps may be shifted and transformed if the maps are transformed the other way, so a mixture is kept in
the gauge in which the latents of all particles together have mean 0 and covariance I, as N(0, I) has.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.tree import pytree

_LEAST = 1e-6  # variance of a Gaussian along any axis; that of all particles together is 1
_FEWEST = 1.0  # particles per dimension below which a Gaussian keeps its shape


@pytree
class LatentMixture:
    """p(z) = sum_k w_k N(z; m_k, S_k), in arrays of JAX, or of NumPy in float64 where sums over particles are taken.

    Attributes:
        weights: w, (K,), sum 1.
        means: m, (K, dims).
        covariances: S, (K, dims, dims).
    """

    weights: Any
    means: Any
    covariances: Any

    def moments(self) -> tuple[Array, Array]:
        """Mean (dims,) and covariance (dims, dims) of z."""
        mean = self.weights @ self.means
        apart = self.means - mean
        within = jnp.tensordot(self.weights, self.covariances, 1)
        return mean, within + jnp.einsum("k,ki,kj->ij", self.weights, apart, apart)

    def standardised(self) -> "LatentMixture":
        """That of L^-1 (z - mean) with the covariance of z being L L^T: mean 0, covariance I."""
        mean, covariance = self.moments()
        return self.transformed(-mean, jnp.linalg.inv(jnp.linalg.cholesky(covariance)))

    def transformed(self, shift: Array, matrix: Array) -> "LatentMixture":
        """That of A (z + shift), A (dims, dims)."""
        means = (self.means + shift) @ matrix.T
        return LatentMixture(self.weights, means, matrix @ self.covariances @ matrix.T)

    def sorted(self) -> "LatentMixture":
        """The most frequent Gaussian first."""
        order = jnp.argsort(-self.weights, stable=True)
        return jax.tree.map(lambda leaf: leaf[order], self)


def first_mixture(count: int, dims: int) -> LatentMixture:
    """Equal Gaussians of equal weight whose means lie apart, in the standard gauge: no direction of the data's."""
    means = np.random.default_rng(0).normal(size=(count, dims))
    equal = jnp.full(count, 1 / count)
    broad = jnp.broadcast_to(jnp.eye(dims), (count, dims, dims))
    return LatentMixture(equal, jnp.asarray(means, jnp.float32), broad).standardised()


def most_likely(moments: np.ndarray, before: LatentMixture) -> LatentMixture:
    """The mixture of greatest expected log density, in the gauge of the moments; float64.

    Its total mean and covariance are those of the moments exactly, but for Gaussians that keep their shape since they
    have fewer particles than coordinates.

    Args:
        moments: sum over particles of p(k | y) E[(1, z)(1, z)^T | y, k], (K, 1 + dims, 1 + dims).
        before: the mixture of the pass.
    """
    moments = np.asarray(moments, np.float64)
    counts, dims = np.maximum(moments[:, 0, 0], 1e-12), moments.shape[1] - 1
    means = moments[:, 1:, 0] / counts[:, None]
    covariances = moments[:, 1:, 1:] / counts[:, None, None] - means[:, :, None] * means[:, None, :]
    values, vectors = np.linalg.eigh(covariances)
    covariances = (vectors * np.maximum(values, _LEAST)[:, None]) @ np.swapaxes(vectors, 1, 2)
    few = counts < _FEWEST * (1 + dims)
    means[few], covariances[few] = np.asarray(before.means)[few], np.asarray(before.covariances)[few]
    return LatentMixture(counts / counts.sum(), means, covariances)


def expected_log_density(moments: np.ndarray, mixture: LatentMixture) -> float:
    """Sum over particles of E log w_k N(z; m_k, S_k), from the moments of `most_likely`; float64."""
    moments = np.asarray(moments, np.float64)
    weights, means, covariances = (np.asarray(v, np.float64) for v in jax.tree.leaves(mixture))
    counts, first, second = moments[:, 0, 0], moments[:, 1:, 0], moments[:, 1:, 1:]
    cross = first[:, :, None] * means[:, None, :]
    about = second - cross - np.swapaxes(cross, 1, 2)
    about += counts[:, None, None] * means[:, :, None] * means[:, None, :]
    quadratic = np.einsum("kij,kji->k", np.linalg.inv(covariances), about)
    constant = np.log(weights) - 0.5 * np.linalg.slogdet(2 * np.pi * covariances)[1]
    return float(counts @ constant - 0.5 * quadratic.sum())
