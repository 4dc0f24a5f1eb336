"""The likelihood as NumPyro distributions of an image's Fourier pixels.

The event is a complex vector of the stored pixels (pixels,); `log_prob` is the density over the image's real
components in the band, constants included, in the precision of the arguments.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from hetmodels.imaging.likelihood import (
    bank_products,
    contrast_ratio,
    log_evidence_zero,
    log_ratio_contrast,
    log_ratio_low_rank,
)
from hetmodels.imaging.noise import sample_noise

_PIXELS = constraints.independent(constraints.complex, 1)
_POSITIVE = constraints.independent(constraints.positive, 1)
_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class FourierImage(Distribution):
    """An image y = a x + n: noise n with E|n|^2 = noise_variance, contrast a ~ N(1, contrast_sd^2) integrated.

    Args:
        model: noise-free image x, complex (…, pixels).
        noise_variance: E|n|^2 per pixel, (…, pixels).
        contrast_sd: standard deviation of the contrast, (…); 0 fixes it at 1.
        validate_args: as in NumPyro.
    """

    arg_constraints = {"model": _PIXELS, "noise_variance": _POSITIVE, "contrast_sd": constraints.nonnegative}
    support = _PIXELS

    def __init__(
        self,
        model: ArrayLike,
        noise_variance: ArrayLike,
        contrast_sd: ArrayLike = 0.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.model, self.noise_variance = jnp.asarray(model), jnp.asarray(noise_variance)
        self.contrast_sd = jnp.asarray(contrast_sd)
        shape = jnp.broadcast_shapes(jnp.shape(model), jnp.shape(noise_variance), (*jnp.shape(contrast_sd), 1))
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw contrast and noise: complex (*sample_shape, …, pixels)."""
        key, other = jax.random.split(key)
        noise = sample_noise(key, self.noise_variance, self.shape(sample_shape))
        draw = jax.random.normal(other, (*sample_shape, *self.batch_shape), noise.real.dtype)
        contrast = 1 + self.contrast_sd * draw
        return contrast[..., None] * self.model + noise

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Log density, (…)."""
        ratio, _, _ = log_ratio_contrast(value, self.model, self.noise_variance, self.contrast_sd)
        return _total(ratio, value, self.noise_variance)

    @property
    def mean(self) -> Array:
        """E[y], complex (…, pixels)."""
        return jnp.broadcast_to(self.model, self.shape())

    @property
    def variance(self) -> Array:
        """E|y - E[y]|^2 per pixel, (…, pixels)."""
        spread = self.contrast_sd[..., None] ** 2 * _power(self.model)
        return jnp.broadcast_to(self.noise_variance + spread, self.shape())


class LowRankFourierImage(Distribution):
    """An image with linear Gaussian latents integrated: y = mean + sum_a z_a basis_a + n, z ~ N(0, covariance) real.

    Args:
        loc: noise-free image at z = 0, complex (…, pixels).
        basis: change of the image per unit of each latent, complex (…, q, pixels).
        covariance: prior covariance of the latents, (…, q, q).
        noise_variance: E|n|^2 per pixel, (…, pixels).
        validate_args: as in NumPyro.
    """

    arg_constraints = {
        "loc": _PIXELS,
        "basis": constraints.independent(constraints.complex, 2),
        "covariance": constraints.positive_definite,
        "noise_variance": _POSITIVE,
    }
    support = _PIXELS

    def __init__(
        self,
        loc: ArrayLike,
        basis: ArrayLike,
        covariance: ArrayLike,
        noise_variance: ArrayLike,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.basis = jnp.asarray(loc), jnp.asarray(basis)
        self.covariance, self.noise_variance = jnp.asarray(covariance), jnp.asarray(noise_variance)
        batches = (
            jnp.shape(loc)[:-1],
            jnp.shape(basis)[:-2],
            jnp.shape(covariance)[:-2],
            jnp.shape(noise_variance)[:-1],
        )
        super().__init__(jnp.broadcast_shapes(*batches), jnp.shape(loc)[-1:], validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw latents and noise: complex (*sample_shape, …, pixels)."""
        key, other = jax.random.split(key)
        noise = sample_noise(key, self.noise_variance, self.shape(sample_shape))
        root = jnp.linalg.cholesky(self.covariance)
        draw = jax.random.normal(other, (*sample_shape, *self.batch_shape, root.shape[-1]), noise.real.dtype)
        latents = _einsum("...ab,...b->...a", root, draw)
        return self.loc + _einsum("...a,...am->...m", latents, self.basis) + noise

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Log density, (…)."""
        ratio, _, _ = self._integrated(value)
        return _total(ratio, value, self.noise_variance)

    def latents(self, value: ArrayLike) -> tuple[Array, Array]:
        """Posterior mean (…, q) and covariance (…, q, q) of the latents of an image."""
        _, mean, covariance = self._integrated(value)
        return mean, covariance

    def _integrated(self, value: ArrayLike) -> tuple[Array, Array, Array]:
        return log_ratio_low_rank(value, self.loc, self.basis, self.covariance, self.noise_variance)

    @property
    def mean(self) -> Array:
        """E[y], complex (…, pixels)."""
        return jnp.broadcast_to(self.loc, self.shape())

    @property
    def variance(self) -> Array:
        """E|y - E[y]|^2 per pixel, (…, pixels)."""
        root = _einsum("...ab,...am->...bm", jnp.linalg.cholesky(self.covariance), self.basis)
        return jnp.broadcast_to(self.noise_variance + jnp.sum(_power(root), axis=-2), self.shape())


class PoseMarginalImage(Distribution):
    """An image of one of many candidates, which one being unknown: the sum over a bank of slices and over shifts.

    y = a transfer · phases_t · bank_r + n with probability proportional to exp(log_weights_r + shift_log_weights_t).
    Candidates are rotations, classes, or both; all are scored by matrix products.

    Args:
        bank: slices, complex (candidates, pixels).
        noise_variance: E|n|^2 per pixel, (…, pixels).
        transfer: real contrast transfer, (…, pixels); 1 if None.
        log_weights: log prior weights of the candidates, (candidates,), normalised here; equal if None.
        phases: unit phases of the shifts, complex (shifts, pixels); no shift if None.
        shift_log_weights: log prior weights of the shifts, (shifts,), normalised here; equal if None.
        contrast_sd: standard deviation of the contrast a ~ N(1, contrast_sd^2), a number; 0 fixes it at 1.
        validate_args: as in NumPyro.
    """

    arg_constraints = {
        "bank": constraints.independent(constraints.complex, 2),
        "noise_variance": _POSITIVE,
        "transfer": constraints.real_vector,
        "log_weights": constraints.real_vector,
        "phases": constraints.independent(constraints.complex, 2),
        "shift_log_weights": constraints.real_vector,
        "contrast_sd": constraints.nonnegative,
    }
    support = _PIXELS

    def __init__(
        self,
        bank: ArrayLike,
        noise_variance: ArrayLike,
        transfer: ArrayLike | None = None,
        log_weights: ArrayLike | None = None,
        phases: ArrayLike | None = None,
        shift_log_weights: ArrayLike | None = None,
        contrast_sd: ArrayLike = 0.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.bank, self.noise_variance = jnp.asarray(bank), jnp.asarray(noise_variance)
        self.contrast_sd = jnp.asarray(contrast_sd)
        self.transfer = jnp.ones_like(self.noise_variance) if transfer is None else jnp.asarray(transfer)
        self.phases = jnp.ones_like(self.bank[:1]) if phases is None else jnp.asarray(phases)
        self.log_weights = _equal(self.bank, self.noise_variance) if log_weights is None else jnp.asarray(log_weights)
        equal = shift_log_weights is None
        self.shift_log_weights = _equal(self.phases, self.noise_variance) if equal else jnp.asarray(shift_log_weights)
        shape = jnp.broadcast_shapes(self.noise_variance.shape, self.transfer.shape)
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw candidate, shift, contrast and noise: complex (*sample_shape, …, pixels)."""
        pick, move, scale, key = jax.random.split(key, 4)
        shape = (*sample_shape, *self.batch_shape)
        noise = sample_noise(key, self.noise_variance, self.shape(sample_shape))
        slices = self.bank[jax.random.categorical(pick, self.log_weights, shape=shape)]
        phases = self.phases[jax.random.categorical(move, self.shift_log_weights, shape=shape)]
        contrast = 1 + self.contrast_sd * jax.random.normal(scale, shape, noise.real.dtype)
        return contrast[..., None] * self.transfer * phases * slices + noise

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Log density, (…)."""
        scores = self._scores(value)
        return _total(jax.nn.logsumexp(scores, axis=(-2, -1)), value, self.noise_variance)

    def responsibilities(self, value: ArrayLike) -> Array:
        """Posterior probability of each shift and candidate of an image, (…, shifts, candidates)."""
        scores = self._scores(value)
        return jax.nn.softmax(scores.reshape(*scores.shape[:-2], -1)).reshape(scores.shape)

    def _scores(self, value: ArrayLike) -> Array:
        """Log prior plus log likelihood ratio of every shift and candidate, (…, shifts, candidates)."""
        pixels = self.event_shape[-1]
        shape = jnp.broadcast_shapes(jnp.shape(value), self.shape())
        rows = [
            jnp.broadcast_to(part, shape).reshape(-1, pixels) for part in (value, self.noise_variance, self.transfer)
        ]
        linear, quadratic = bank_products(rows[0], self.bank, rows[1], rows[2], self.phases)
        ratio, _, _ = contrast_ratio(linear, quadratic[:, None, :], self.contrast_sd)
        prior = jax.nn.log_softmax(self.shift_log_weights)[:, None] + jax.nn.log_softmax(self.log_weights)
        return (ratio + prior).reshape(*shape[:-1], *prior.shape)

    @property
    def mean(self) -> Array:
        """E[y], complex (…, pixels)."""
        slices = _einsum("r,rm->m", jax.nn.softmax(self.log_weights), self.bank)
        phases = _einsum("t,tm->m", jax.nn.softmax(self.shift_log_weights), self.phases)
        return jnp.broadcast_to(self.transfer * phases * slices, self.shape())

    @property
    def variance(self) -> Array:
        """E|y - E[y]|^2 per pixel, (…, pixels)."""
        power = _einsum("r,rm->m", jax.nn.softmax(self.log_weights), _power(self.bank))
        signal = (1 + self.contrast_sd**2) * self.transfer**2 * power
        return self.noise_variance + signal - _power(self.mean)


def _power(values: Array) -> Array:
    return values.real**2 + values.imag**2


def _equal(rows: Array, like: Array) -> Array:
    return jnp.zeros(rows.shape[0], like.dtype)


def _total(ratio: Array, value: Any, variance: Any) -> Array:
    """The ratio plus the noise-only density, added in float64, in the precision of the ratio."""
    with jax.enable_x64(True):
        return (ratio.astype(jnp.float64) + log_evidence_zero(value, variance)).astype(ratio.dtype)
