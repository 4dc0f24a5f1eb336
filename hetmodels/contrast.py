"""Where the contrast of an image is integrated numerically: nodes about its rough posterior."""

import jax.numpy as jnp
from jax import Array

from hetmodels.observation import Contrast

CONTRAST_NODES = 24


def contrast_range(linear: Array, quadratic: Array, contrast: Contrast) -> tuple[Array, Array]:
    """Centre and half width of what to integrate the contrast over, wide about its rough posterior, any shape."""
    prior = 1 / contrast.sd**2
    precision = prior + 2 * quadratic
    width = 1 / jnp.sqrt(precision)
    return (prior + linear) / precision, jnp.minimum(8 * width, 0.5 * width + 6 * contrast.sd)


def contrast_grid(linear: Array, quadratic: Array, contrast: Contrast) -> tuple[Array, Array]:
    """Nodes over the contrast and log weights of prior times spacing, (rows, nodes)."""
    prior = 1 / contrast.sd**2
    centre, reach = contrast_range(linear, quadratic, contrast)
    unit = jnp.linspace(-1.0, 1.0, CONTRAST_NODES)
    a = centre[:, None] + reach[:, None] * unit
    step = reach * (unit[1] - unit[0])
    log_prior = -0.5 * prior * (a - 1) ** 2 + 0.5 * jnp.log(prior / (2 * jnp.pi))
    return a, log_prior + jnp.log(step)[:, None]
