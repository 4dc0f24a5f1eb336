"""Laws of the likelihood: dense real-space Gaussians, quadrature, brute force, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_gaussian import circulant, log_normal, real_coordinates, waves

from hetmodels.imaging.grids import Disc
from hetmodels.imaging.likelihood import (
    bank_products,
    contrast_ratio,
    log_evidence_zero,
    log_ratio,
    log_ratio_contrast,
    log_ratio_low_rank,
    products,
)


def spectrum(size):
    """A coloured, not radial, point-symmetric power spectrum on the full grid (ky, kx)."""
    k = np.fft.fftfreq(size, 1 / size)
    ky, kx = np.meshgrid(k, k, indexing="ij")
    return 0.5 + 2 / (1 + kx**2 + 0.5 * ky**2 + 0.1 * (kx * ky) ** 2)


def setting(size=8, rows=3, q=2, seed=0):
    """Random images, models, a basis and variances at one size."""
    rng = np.random.default_rng(seed)
    disc = Disc(size)

    def draw(*shape):
        return rng.normal(size=(*shape, disc.pixels)) + 1j * rng.normal(size=(*shape, disc.pixels))

    variance = rng.uniform(0.5, 2, (rows, disc.pixels))
    root = rng.normal(size=(rows, q, q))
    covariance = root @ np.swapaxes(root, 1, 2) + 0.3 * np.eye(q)
    return draw(rows), draw(rows), 0.3 * draw(rows, q), covariance, variance


@pytest.mark.parametrize("size", [6, 7, 8])
def test_density_is_the_dense_gaussian_over_real_pixels(size):
    rng = np.random.default_rng(1)
    disc, power = Disc(size), spectrum(size)
    basis, covariance = waves(disc), circulant(power)
    assert np.allclose(basis @ basis.T, np.eye(2 * disc.pixels), atol=1e-13)
    variance = power[disc.index[:, 1] % size, disc.index[:, 0] % size]
    image, model = rng.normal(size=(2, size, size))
    dense = [
        log_normal(basis @ (image - x).ravel(), basis @ covariance @ basis.T) for x in (model, np.zeros_like(model))
    ]
    with jax.enable_x64(True):
        y, x = disc.forward(jnp.asarray(image)), disc.forward(jnp.asarray(model))
        zero, ratio = log_evidence_zero(y, variance), log_ratio(y, x, variance)
    assert float(zero) == pytest.approx(dense[1], abs=1e-10)
    assert float(zero + ratio) == pytest.approx(dense[0], abs=1e-10)


def test_constants_are_double_and_kernels_keep_their_precision():
    images, models, basis, covariance, variance = setting()
    single = [np.asarray(a, np.complex64 if np.iscomplexobj(a) else np.float32) for a in setting()]
    assert log_evidence_zero(single[0], single[4]).dtype == jnp.float64
    assert jax.jit(log_evidence_zero)(single[0], single[4]).dtype == jnp.float64
    ratio = log_ratio(single[0], single[1], single[4])
    low = log_ratio_low_rank(*single)
    assert ratio.dtype == jnp.float32 and all(part.dtype == jnp.float32 for part in low)
    assert np.allclose(ratio, log_ratio(images, models, variance), rtol=1e-5, atol=1e-4)
    with jax.enable_x64(True):
        exact = log_ratio_low_rank(images, models, basis, covariance, variance)
    for part, other in zip(low, exact, strict=True):
        assert np.allclose(part, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sd", [0.2, 1.5])
def test_contrast_is_the_integral_over_it(sd):
    images, models, _, _, variance = setting()
    a = 1 + sd * np.linspace(-15, 15, 20_001)  # the trapezoidal rule is exact to rounding for such integrands
    with jax.enable_x64(True):
        found = [np.asarray(part) for part in log_ratio_contrast(images, models, variance, sd)]
        linear, quadratic = (np.asarray(part) for part in products(images, models, variance))
        fixed = [np.asarray(part) for part in contrast_ratio(linear, quadratic, 0.0)]
    prior = -((a - 1) ** 2) / (2 * sd**2) - np.log(sd * np.sqrt(2 * np.pi))
    for i, (log_mass, mean, spread) in enumerate(zip(*found, strict=True)):
        mass = np.exp(a * linear[i] - a**2 * quadratic[i] + prior - log_mass) * (a[1] - a[0])
        assert np.log(mass.sum()) == pytest.approx(0, abs=1e-10)
        assert (mass * a).sum() == pytest.approx(mean, abs=1e-10)
        assert (mass * (a - mean) ** 2).sum() == pytest.approx(spread, abs=1e-10)
    assert np.allclose(fixed[0], linear - quadratic, atol=1e-14) and np.all(fixed[1] == 1) and np.all(fixed[2] == 0)


def test_contrast_is_the_gaussian_with_the_model_as_a_direction():
    """N(y; x, diag + sd^2 x x^T) over the real coordinates."""
    images, models, _, _, variance = setting()
    with jax.enable_x64(True):
        found, _, _ = log_ratio_contrast(images, models, variance, 0.4)
        zero = log_evidence_zero(images, variance)
    for i in range(len(images)):
        x, d = real_coordinates(models[i]), real_coordinates(images[i] - models[i])
        covariance = np.diag(np.tile(variance[i], 2)) + 0.16 * np.outer(x, x)
        assert float(found[i] + zero[i]) == pytest.approx(log_normal(d, covariance), abs=1e-9)


@pytest.mark.parametrize("q", [1, 3])
def test_low_rank_is_the_dense_gaussian(q):
    images, mean, basis, covariance, variance = setting(q=q)
    with jax.enable_x64(True):
        found, latent, spread = log_ratio_low_rank(images, mean, basis, covariance, variance)
        zero = log_evidence_zero(images, variance)
    for i in range(len(images)):
        w, d = real_coordinates(basis[i]).T, real_coordinates(images[i] - mean[i])
        dense = np.diag(np.tile(variance[i], 2)) + w @ covariance[i] @ w.T
        assert float(found[i] + zero[i]) == pytest.approx(log_normal(d, dense), abs=1e-9)
        gain = np.linalg.solve(dense, w @ covariance[i]).T
        assert np.allclose(latent[i], gain @ d, atol=1e-10)
        assert np.allclose(spread[i], covariance[i] - gain @ w @ covariance[i], atol=1e-10)


@pytest.mark.parametrize("q", [1, 2])
def test_low_rank_is_the_integral_over_latents(q):
    """40-point Gauss-Hermite per latent, at the prior, where the basis is weak enough for it to converge."""
    images, mean, basis, _, variance = setting(q=q)
    basis, prior = 0.15 * basis, np.diag([0.8, 0.5][:q])
    node, weight = np.polynomial.hermite_e.hermegauss(40)
    nodes = np.stack(np.meshgrid(*[node] * q, indexing="ij"), -1).reshape(-1, q)
    weights = np.prod(np.stack(np.meshgrid(*[weight] * q, indexing="ij"), -1), -1).ravel() / (2 * np.pi) ** (q / 2)
    z = nodes * np.sqrt(np.diag(prior))
    with jax.enable_x64(True):
        found, _, _ = log_ratio_low_rank(images, mean, basis, prior, variance)
        models = mean[:, None] + np.einsum("tq,nqm->ntm", z, basis)
        each = np.asarray(log_ratio(images[:, None], models, variance[:, None]))
    expected = np.log((np.exp(each - each.max(1, keepdims=True)) * weights).sum(1)) + each.max(1)
    assert np.allclose(found, expected, rtol=0, atol=1e-8)


def test_bank_products_are_those_of_each_candidate():
    images, bank, _, _, variance = setting(rows=4)
    rng = np.random.default_rng(5)
    transfer = rng.uniform(-1, 1, variance.shape)
    phases = np.exp(1j * rng.uniform(-np.pi, np.pi, (3, variance.shape[1])))
    with jax.enable_x64(True):
        linear, quadratic = bank_products(images, bank[:2], variance, transfer, phases)
        models = transfer[:, None, None] * phases[None, :, None] * bank[None, None, :2]
        expected = products(images[:, None, None], models, variance[:, None, None])
        assert linear.shape == (4, 3, 2) and quadratic.shape == (4, 2)
        assert np.allclose(linear, expected[0], atol=1e-12)
        assert np.allclose(quadratic[:, None, :], expected[1], atol=1e-12)
        plain = bank_products(images, bank, variance[0])
        assert np.allclose(plain[0][:, 0], products(images[:, None], bank, variance[0])[0], atol=1e-12)


def test_gradients_agree_with_finite_differences():
    """The three marginals as functions of a step along 20 directions in real parts of model, basis, variance."""
    images, mean, basis, covariance, variance = setting(rows=2, seed=3)
    start = (mean.real, mean.imag, basis.real, basis.imag, variance, covariance)

    def total(mean_re, mean_im, basis_re, basis_im, rho, prior):
        x, w = mean_re + 1j * mean_im, basis_re + 1j * basis_im
        latent, _, _ = log_ratio_low_rank(images, x, w, prior, rho)
        scaled, _, _ = log_ratio_contrast(images, x, rho, 0.3)
        linear, quadratic = bank_products(images, w[0], rho)
        bank = jax.nn.logsumexp(linear[:, 0] - quadratic, axis=-1)
        return jnp.sum(latent + scaled + bank + log_evidence_zero(images, rho))

    with jax.enable_x64(True):
        value = jax.jit(total)
        gradient = jax.grad(value, argnums=range(6))(*start)
        rng, step = np.random.default_rng(4), 1e-5
        for _ in range(20):
            way = [rng.normal(size=part.shape) for part in start]
            way[5] = way[5] + np.swapaxes(way[5], 1, 2)
            ahead, back = (value(*(p + s * step * w for p, w in zip(start, way, strict=True))) for s in (1, -1))
            slope = sum(float(jnp.sum(g * w)) for g, w in zip(gradient, way, strict=True))
            assert slope == pytest.approx(float(ahead - back) / (2 * step), rel=1e-6, abs=1e-6)


def test_gradient_is_the_residual_form():
    """d log p / d mean = conj-gradient: 2 (y - x) / variance as d/dRe + i d/dIm."""
    images, mean, _, _, variance = setting()
    with jax.enable_x64(True):
        re, im = jax.grad(lambda a, b: jnp.sum(log_ratio(images, a + 1j * b, variance)), (0, 1))(mean.real, mean.imag)
        assert np.allclose(re + 1j * im, 2 * (images - mean) / variance, atol=1e-12)
