"""Noise of Fourier pixels: its radial power, draws of it, and RELION's units."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from hetmodels.imaging.grids import Disc


def radial_power(coefficients: np.ndarray, disc: Disc) -> np.ndarray:
    """Mean power E|X|^2 of each radial shell, on the host in float64.

    Args:
        coefficients: Fourier pixels, complex (…, pixels).
        disc: which pixels they are.

    Returns:
        Power per shell, (…, shells); shell 0, which has no pixels, is 0.
    """
    values = np.asarray(coefficients)
    order = np.argsort(disc.shell, kind="stable")
    power = np.square(values.real, dtype=np.float64) + np.square(values.imag, dtype=np.float64)
    starts = np.concatenate([[0], np.cumsum(disc.shell_counts)[1:-1]])
    sums = np.add.reduceat(power[..., order], starts, axis=-1)
    mean = np.zeros((*values.shape[:-1], disc.shells))
    mean[..., 1:] = sums / disc.shell_counts[1:]
    return mean


def sample_noise(key: Array, variance: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Circular complex Gaussian noise with E|n|^2 = variance: real and imaginary parts have half of it each.

    Args:
        key: random key.
        variance: per pixel, broadcast to the shape; its precision is that of the result.
        shape: shape of the draw.
    """
    spread = jnp.sqrt(jnp.asarray(variance) / 2)
    parts = jax.random.normal(key, (2, *shape), spread.dtype)
    return spread * jax.lax.complex(parts[0], parts[1])


def from_relion_sigma2(sigma2_noise: Any, size: int) -> Any:
    """Variance E|n|^2 of orthonormal Fourier pixels from rlnSigma2Noise, for images of size x size pixels.

    RELION's transform divides by size^2 and its variance is that of the real part alone.
    """
    return sigma2_noise * (2 * size**2)


def to_relion_sigma2(variance: Any, size: int) -> Any:
    """rlnSigma2Noise from the variance E|n|^2 of orthonormal Fourier pixels; inverse of `from_relion_sigma2`."""
    return variance / (2 * size**2)
