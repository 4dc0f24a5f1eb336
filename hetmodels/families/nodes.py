"""A distribution on finitely many points: the prior of a latent that is enumerated on a grid."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints


class Nodes(dist.Distribution):
    """Points z_n with probabilities; the density of a point between nodes is that of the nearest.

    Args:
        points: (nodes, dims).
        log_weights: log probabilities, (nodes,).
    """

    arg_constraints = {"points": constraints.real_matrix, "log_weights": constraints.real_vector}
    support = constraints.real_vector

    def __init__(self, points: Array, log_weights: Array, *, validate_args: Any = None) -> None:
        self.points, self.log_weights = points, log_weights
        super().__init__((), points.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Array:
        """Mean of the points, (dims,)."""
        return jnp.exp(self.log_weights) @ self.points

    @property
    def variance(self) -> Array:
        """Variance of each coordinate, (dims,)."""
        return jnp.exp(self.log_weights) @ (self.points - self.mean) ** 2

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Nodes, (*sample_shape, dims)."""
        return self.points[jax.random.categorical(key, self.log_weights, shape=sample_shape)]

    def log_prob(self, value: Array) -> Array:
        """Log probability of the nearest node."""
        apart = ((value[..., None, :] - self.points) ** 2).sum(-1)
        return self.log_weights[jnp.argmin(apart, axis=-1)]
