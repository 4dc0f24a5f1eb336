"""The one likelihood: complex Fourier pixels y = x + n, n circular Gaussian with E|n|^2 = variance.

Kernels return log p(y|x) - log p(y|0) in the precision they are given, with what is marginalised in closed form;
`log_evidence_zero` is the rest, in float64. The density is that of the image's real components in the band, two
per stored pixel:  log p(y|x) = - sum |y - x|^2 / variance - sum log(2 pi variance).
The inner product is <a, b> = 2 Re sum conj(a) b / variance, so that -log p grows by |y - x|^2 / 2 in its norm.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

_HIGHEST = jax.lax.Precision.HIGHEST


def log_evidence_zero(images: ArrayLike, variance: ArrayLike) -> Array:
    """Log density of images if they were noise only, float64 (…,), whatever the precision of the arguments.

    Args:
        images: Fourier pixels, complex (…, pixels).
        variance: E|n|^2 per pixel, (…, pixels).
    """
    with jax.enable_x64(True):
        y = jnp.asarray(images).astype(jnp.complex128)
        rho = jnp.asarray(variance).astype(jnp.float64)
        return -jnp.sum((y.real**2 + y.imag**2) / rho + jnp.log(2 * jnp.pi * rho), axis=-1)


def products(images: ArrayLike, models: ArrayLike, variance: ArrayLike) -> tuple[Array, Array]:
    """What the likelihood of scaled models needs: log p(y|a x) - log p(y|0) = a linear - a^2 quadratic.

    Args:
        images: Fourier pixels y, complex (…, pixels).
        models: noise-free images x, complex (…, pixels).
        variance: E|n|^2 per pixel, (…, pixels).

    Returns:
        linear = 2 Re sum conj(y) x / variance and quadratic = sum |x|^2 / variance, each (…,).
    """
    y, x, rho = jnp.asarray(images), jnp.asarray(models), jnp.asarray(variance)
    linear = 2 * jnp.sum((y.real * x.real + y.imag * x.imag) / rho, axis=-1)
    return linear, jnp.sum((x.real**2 + x.imag**2) / rho, axis=-1)


def log_ratio(images: ArrayLike, models: ArrayLike, variance: ArrayLike) -> Array:
    """Log ratio log p(y|x) - log p(y|0), (…,); arguments as in `products`."""
    linear, quadratic = products(images, models, variance)
    return linear - quadratic


def contrast_ratio(linear: Array, quadratic: Array, sd: ArrayLike) -> tuple[Array, Array, Array]:
    """Integrate a contrast a ~ N(1, sd^2) that multiplies the model, from the sums of `products`.

    Exact, as the likelihood is Gaussian in a; with sd = 0 the contrast is 1.

    Args:
        linear: as from `products`, any shape.
        quadratic: as from `products`, the same shape.
        sd: prior standard deviation of the contrast.

    Returns:
        log p(y|x) - log p(y|0), and the posterior mean and variance of a.
    """
    prior = jnp.square(sd)
    residual = linear - 2 * quadratic  # slope of the log ratio at a = 1
    variance = prior / (1 + 2 * prior * quadratic)
    gain = variance * residual
    log_ratio = linear - quadratic + (gain * residual - jnp.log1p(2 * prior * quadratic)) / 2
    return log_ratio, 1 + gain, variance


def log_ratio_contrast(
    images: ArrayLike, models: ArrayLike, variance: ArrayLike, sd: ArrayLike
) -> tuple[Array, Array, Array]:
    """Log ratio with the contrast a ~ N(1, sd^2) integrated, E[a|y] and Var[a|y], each (…,)."""
    return contrast_ratio(*products(images, models, variance), sd)


def log_ratio_low_rank(
    images: ArrayLike, mean: ArrayLike, basis: ArrayLike, covariance: ArrayLike, variance: ArrayLike
) -> tuple[Array, Array, Array]:
    """Integrate real Gaussian latents: x = mean + sum_a z_a basis_a, z ~ N(0, covariance).

    Args:
        images: Fourier pixels, complex (…, pixels).
        mean: noise-free image at z = 0, complex (…, pixels).
        basis: change of the image per unit of each latent, complex (…, q, pixels).
        covariance: prior covariance of the latents, positive definite, (…, q, q).
        variance: E|n|^2 per pixel, (…, pixels).

    Returns:
        log p(y) - log p(y|0) (…,), and the latents' posterior mean (…, q) and covariance (…, q, q).
    """
    mean, basis, rho = jnp.asarray(mean), jnp.asarray(basis), jnp.asarray(variance)
    difference = jnp.asarray(images) - mean
    root = jnp.linalg.cholesky(jnp.asarray(covariance))
    gram = real_products(basis / rho[..., None, :], basis)
    slope = real_products(difference[..., None, :] / rho[..., None, :], basis)[..., 0, :]
    inner = jnp.einsum("...ba,...bc,...cd->...ad", root, gram, root, precision=_HIGHEST)
    whitened = jnp.einsum("...ba,...b->...a", root, slope, precision=_HIGHEST)
    factor = jnp.linalg.cholesky(jnp.eye(inner.shape[-1], dtype=inner.dtype) + inner)
    half = jax.scipy.linalg.solve_triangular(factor, whitened[..., None], lower=True)
    spread = jax.scipy.linalg.solve_triangular(factor, jnp.matrix_transpose(root) + jnp.zeros_like(factor), lower=True)
    latent_mean = jnp.einsum("...ba,...b->...a", spread, half[..., 0], precision=_HIGHEST)
    latent_covariance = jnp.einsum("...ba,...bc->...ac", spread, spread, precision=_HIGHEST)
    log_determinant = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)
    gained = jnp.sum(half[..., 0] ** 2, axis=-1) / 2 - log_determinant
    return log_ratio(images, mean, rho) + gained, latent_mean, latent_covariance


def real_products(left: Array, right: Array) -> Array:
    """2 Re sum conj(left_i) right_j over pixels, by one real matrix product: (…, i, m), (…, j, m) -> (…, i, j)."""
    left = jnp.concatenate([left.real, left.imag], axis=-1)
    right = jnp.concatenate([right.real, right.imag], axis=-1)
    return 2 * jnp.einsum("...im,...jm->...ij", left, right, precision=_HIGHEST)


def bank_products(
    images: ArrayLike,
    bank: ArrayLike,
    variance: ArrayLike,
    transfer: ArrayLike | None = None,
    phases: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """The sums of `products` for every image and every model transfer · phase · bank, by two matrix products.

    Args:
        images: Fourier pixels, complex (n, pixels).
        bank: slices, common to all images, complex (candidates, pixels).
        variance: E|n|^2 per pixel, (n, pixels) or (pixels,).
        transfer: real contrast transfer, (n, pixels) or (pixels,); 1 if None.
        phases: unit phases of shifts, complex (shifts, pixels); one shift of zero if None.

    Returns:
        linear, real (n, shifts, candidates), and quadratic, real (n, candidates), which no shift changes.
    """
    y, x, rho = jnp.asarray(images), jnp.asarray(bank), jnp.asarray(variance)
    c = jnp.ones_like(rho) if transfer is None else jnp.asarray(transfer)
    shifts = jnp.ones((1, x.shape[-1]), x.dtype) if phases is None else jnp.asarray(phases)
    back = (y * (c / rho))[:, None, :] * jnp.conj(shifts)
    linear = real_products(back.reshape(-1, x.shape[-1]), x).reshape(y.shape[0], shifts.shape[0], x.shape[0])
    weight = jnp.broadcast_to(c * c / rho, y.shape)
    quadratic = jnp.einsum("nm,km->nk", weight, x.real**2 + x.imag**2, precision=_HIGHEST)
    return linear, quadratic
