"""The reference of the likelihood: dense Gaussians over the real pixels of small images, in float64 numpy."""

import numpy as np


def waves(disc):
    """Orthonormal real images spanning the band, (2 pixels, D * D): sqrt 2 times cosine, then minus sine of each pixel.

    The coordinates of an image in them are sqrt 2 times the real and imaginary parts of its Fourier pixels.
    """
    place = np.arange(disc.size) - disc.size // 2
    phase = (
        2
        * np.pi
        / disc.size
        * (disc.index[:, 0, None, None] * place[None, None, :] + disc.index[:, 1, None, None] * place[None, :, None])
    )
    basis = np.concatenate([np.cos(phase), -np.sin(phase)]) * np.sqrt(2) / disc.size
    return basis.reshape(2 * disc.pixels, -1)


def circulant(spectrum):
    """Covariance (D * D, D * D) of stationary periodic noise with the power spectrum given on the full grid (D, D)."""
    size = len(spectrum)
    covariance = np.fft.ifft2(spectrum).real  # autocovariance by displacement (y, x)
    y, x = np.divmod(np.arange(size * size), size)
    return covariance[(y[:, None] - y) % size, (x[:, None] - x) % size]


def real_coordinates(coefficients):
    """Sqrt 2 times real and imaginary parts: orthonormal real coordinates, (…, 2 pixels)."""
    return np.sqrt(2) * np.concatenate([np.real(coefficients), np.imag(coefficients)], axis=-1)


def log_normal(x, covariance):
    """Log density of a centred Gaussian, by Cholesky factor."""
    root = np.linalg.cholesky(covariance)
    white = np.linalg.solve(root, x)
    return -0.5 * white @ white - np.log(np.diag(root)).sum() - 0.5 * len(x) * np.log(2 * np.pi)
