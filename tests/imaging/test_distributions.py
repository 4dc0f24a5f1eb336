"""Laws of the likelihood's distributions: exact densities, moments of draws, use inside NumPyro."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from dense_gaussian import log_normal, real_coordinates
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, init_to_median
from numpyro.infer.autoguide import AutoNormal
from scipy.special import logsumexp

from hetmodels.imaging.distributions import FourierImage, LowRankFourierImage, PoseMarginalImage
from hetmodels.imaging.grids import Disc, phase_ramp
from hetmodels.imaging.rotations import uniform

DISC = Disc(8)
NAMES = ["image", "contrast", "low rank", "pose"]


@jax.jit
def log_prob(image, y):
    return image.log_prob(y)


def draw(rng, *shape):
    return rng.normal(size=(*shape, DISC.pixels)) + 1j * rng.normal(size=(*shape, DISC.pixels))


def slices(rotations, classes, rng):
    """Projections of a few Gaussian beads by their formula: rotations x classes, (candidates, pixels)."""
    k = DISC.index / DISC.size
    centre = rng.uniform(-2, 2, (classes, 5, 3))
    plane = np.einsum("rij,cnj->rcni", rotations, centre)[..., :2]
    phase = np.exp(-2j * np.pi * np.einsum("mi,rcni->rcnm", k, plane)).sum(2)
    return (phase * np.exp(-2 * np.pi**2 * 0.5 * (k**2).sum(1)) / np.sqrt(2)).reshape(-1, DISC.pixels)


def marginal(seed=0, rows=2):
    """N = 8: 60 rotations, 3 classes, 9 shifts, with a transfer, coloured noise and uneven weights."""
    rng = np.random.default_rng(seed)
    bank = slices(np.asarray(uniform(jax.random.key(seed), 60), float), 3, rng)
    move = np.stack(np.meshgrid([-1.0, 0, 1], [-1.0, 0, 1]), -1).reshape(-1, 2)
    phases = np.exp(-2j * np.pi * move @ (DISC.index / DISC.size).T)
    transfer = rng.uniform(-1, 1, (rows, DISC.pixels))
    variance = 0.2 + 1 / (1 + DISC.radius**2) + 0.1 * rng.uniform(size=(rows, DISC.pixels))
    return bank, variance, transfer, rng.normal(size=180), phases, -0.5 * (move**2).sum(1)


def brute_force(y, bank, variance, transfer, weights, phases, shift_weights):
    """The sum over candidates, one density at a time, in float64 numpy."""
    weights, shift_weights = weights - logsumexp(weights), shift_weights - logsumexp(shift_weights)
    terms = np.empty((len(phases), len(bank)))
    for t, phase in enumerate(phases):
        for r, one in enumerate(bank):
            residual = np.abs(y - transfer * phase * one) ** 2 / variance
            terms[t, r] = weights[r] + shift_weights[t] - (residual + np.log(2 * np.pi * variance)).sum()
    return terms


def test_pose_marginal_is_the_brute_force_sum():
    """T3: 60 rotations x 9 shifts x 3 classes, to 1e-9 in float64 and 1e-3 nats in float32."""
    arguments = marginal()
    bank, variance, transfer, *rest = arguments
    y = np.asarray(transfer * bank[:2] + draw(np.random.default_rng(9), 2) * np.sqrt(variance / 2))
    terms = [brute_force(y[i], bank, variance[i], transfer[i], *rest) for i in range(2)]
    expected = np.array([logsumexp(t) for t in terms])
    with jax.enable_x64(True):
        image = PoseMarginalImage(*arguments, validate_args=True)
        assert image.batch_shape == (2,) and image.event_shape == (DISC.pixels,)
        assert np.allclose(log_prob(image, y), expected, rtol=0, atol=1e-9)
        share = np.asarray(image.responsibilities(y))
    for found, t, total in zip(share, terms, expected, strict=True):
        assert np.allclose(found, np.exp(t - total), rtol=0, atol=1e-9)
    single = [np.asarray(a, np.complex64 if np.iscomplexobj(a) else np.float32) for a in (*arguments, y)]
    coarse = log_prob(PoseMarginalImage(*single[:-1]), single[-1])
    assert coarse.dtype == jnp.float32 and np.allclose(coarse, expected, rtol=0, atol=1e-3)


def test_pose_marginal_with_shifted_templates_is_the_one_with_phases():
    bank, variance, transfer, weights, phases, shift_weights = marginal()
    y = draw(np.random.default_rng(1), 2)
    with jax.enable_x64(True):
        moved = (phases[:, None] * bank).reshape(-1, DISC.pixels)
        both = (shift_weights[:, None] + weights).ravel()
        expected = log_prob(PoseMarginalImage(bank, variance, transfer, weights, phases, shift_weights), y)
        assert np.allclose(log_prob(PoseMarginalImage(moved, variance, transfer, both), y), expected, atol=1e-10)
        many = log_prob(PoseMarginalImage(bank, variance, transfer, weights, phases, shift_weights), y[:, None, :])
        assert many.shape == (2, 2) and np.allclose(np.diag(many), expected, atol=1e-10)


def test_pose_marginal_with_one_candidate_is_the_image_distribution():
    bank, variance, transfer, *_ = marginal()
    y = draw(np.random.default_rng(2), 2)
    with jax.enable_x64(True):
        one = log_prob(PoseMarginalImage(bank[:1], variance, transfer, contrast_sd=0.3), y)
        assert np.allclose(one, log_prob(FourierImage(transfer * bank[0], variance, 0.3), y), atol=1e-10)


def test_image_and_low_rank_are_dense_gaussians():
    rng = np.random.default_rng(3)
    y, x, w, variance = draw(rng), draw(rng), draw(rng, 2), rng.uniform(0.5, 2, DISC.pixels)
    covariance = np.array([[1.0, 0.3], [0.3, 0.5]])
    noise, d = np.diag(np.tile(variance, 2)), real_coordinates(y - x)
    a, columns = real_coordinates(x), real_coordinates(w).T
    with jax.enable_x64(True):
        found = [
            log_prob(FourierImage(x, variance, validate_args=True), y),
            log_prob(FourierImage(x, variance, 0.4, validate_args=True), y),
            log_prob(LowRankFourierImage(x, w, covariance, variance, validate_args=True), y),
        ]
        mean, _ = LowRankFourierImage(x, w, covariance, variance).latents(y)
    spreads = [0, 0.16 * np.outer(a, a), columns @ covariance @ columns.T]
    for value, spread in zip(found, spreads, strict=True):
        assert float(value) == pytest.approx(log_normal(d, noise + spread), abs=1e-9)
    gain = covariance @ columns.T @ np.linalg.inv(noise + spreads[2])
    assert np.allclose(mean, gain @ d, atol=1e-10)


def examples(scale=1.0):
    """One of each distribution in single precision, with a batch of two; all signal times the scale."""
    rng = np.random.default_rng(4)
    variance = rng.uniform(0.5, 2, (2, DISC.pixels)).astype(np.float32)
    x, w = (scale * part.astype(np.complex64) for part in (draw(rng, 2), 0.5 * draw(rng, 3)))
    spread = np.diag([1.0, 0.5, 2.0]).astype(np.float32)
    single = [np.asarray(a, np.complex64 if np.iscomplexobj(a) else np.float32) for a in marginal()]
    return [
        FourierImage(x, variance),
        FourierImage(x, variance, 0.5),
        LowRankFourierImage(x, w, spread, variance),
        PoseMarginalImage(scale * single[0], *single[1:], contrast_sd=0.3),
    ]


@pytest.mark.parametrize("kind", range(4), ids=NAMES)
def test_draws_have_the_mean_and_the_variance(kind):
    image, n = examples()[kind], 20_000
    y = np.asarray(jax.jit(lambda key: image.sample(key, (n,)))(jax.random.key(0)))
    assert y.shape == (n, 2, DISC.pixels) and y.dtype == np.complex64
    mean, variance = np.asarray(image.mean), np.asarray(image.variance)
    assert np.abs((y.mean(0) - mean) / np.sqrt(variance)).max() < 6 / np.sqrt(n)
    power = np.abs(y - mean) ** 2
    assert np.abs((power.mean(0) - variance) / power.std(0)).max() < 6 / np.sqrt(n)


@pytest.mark.parametrize("kind", range(4), ids=NAMES)
def test_density_belongs_to_the_draws(kind):
    """E[q / p] = 1 under draws of p, for q the same model with 1 % more signal."""
    image, near = examples()[kind], examples(1.01)[kind]
    y = image.sample(jax.random.key(1), (4000,))
    ratio = np.exp(np.asarray(log_prob(near, y) - log_prob(image, y), float))
    assert np.all(np.abs(ratio.mean(0) - 1) < 5 * ratio.std(0) / np.sqrt(len(ratio)))
    assert ratio.std() > 0.01


@pytest.mark.parametrize("kind", range(4), ids=NAMES)
def test_distributions_are_pytrees(kind):
    """They pass through jit and tree_map, keep their shape, and expand under a plate."""
    image = examples()[kind]
    y = image.sample(jax.random.key(2))
    assert np.allclose(log_prob(image, y), image.log_prob(y), rtol=1e-5)
    again = jax.tree.map(lambda leaf: leaf, image)
    assert again.batch_shape == image.batch_shape and again.event_shape == image.event_shape
    assert image.expand([5, 2]).log_prob(jnp.broadcast_to(y, (5, *y.shape))).shape == (5, 2)


def test_arguments_and_values_are_validated():
    rng = np.random.default_rng(5)
    x, variance = draw(rng).astype(np.complex64), np.ones(DISC.pixels, np.float32)
    with pytest.raises(ValueError, match="noise_variance"):
        FourierImage(x, -variance, validate_args=True)
    with pytest.raises(ValueError, match="model"):
        FourierImage(x * np.nan, variance, validate_args=True)
    with pytest.raises(ValueError, match="covariance"):
        LowRankFourierImage(x, x[None], -np.eye(1, dtype=np.float32), variance, validate_args=True)


def shifts_model(points, model, variance, images=None):
    """Images of one object at unknown shifts t, and an unknown noise level."""
    level = numpyro.sample("level", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("images", variance.shape[0]):
        shift = numpyro.sample("shift", dist.Normal(0, 0.5).expand([2]).to_event(1))
        numpyro.sample("y", FourierImage(model * phase_ramp(points, shift), level * variance, 0.1), obs=images)


def shifted_images(rows):
    rng = np.random.default_rng(6)
    model = 3 * slices(np.eye(3)[None], 1, rng)[0].astype(np.complex64)
    points = (DISC.index / DISC.size).astype(np.float32)
    truth = rng.normal(0, 0.5, (rows, 2)).astype(np.float32)
    variance = np.ones((rows, DISC.pixels), np.float32)
    noise = rng.normal(size=(2, rows, DISC.pixels)).astype(np.float32) / 2  # variance 0.5 in all
    images = model * np.exp(-2j * np.pi * truth @ points.T) + noise[0] + 1j * noise[1]
    return points, model, variance, images.astype(np.complex64), truth


@pytest.mark.slow
def test_nuts_recovers_shifts_and_the_noise_level():
    *arguments, truth = shifted_images(6)
    sampler = MCMC(
        NUTS(shifts_model, init_strategy=init_to_median), num_warmup=150, num_samples=150, progress_bar=False
    )
    sampler.run(jax.random.key(4), *arguments)
    found = sampler.get_samples()
    assert sampler.get_extra_fields()["diverging"].sum() == 0
    error = np.asarray(found["shift"]).mean(0) - truth
    sd = np.asarray(found["shift"]).std(0)
    assert np.abs(error / sd).max() < 4 and sd.max() < 0.3
    assert np.abs(found["level"].mean() - 0.5) < 4 * found["level"].std()


def test_svi_recovers_shifts_and_the_prior_predictive_has_the_right_shape():
    points, model, variance, images, truth = shifted_images(4)
    svi = SVI(shifts_model, AutoNormal(shifts_model), numpyro.optim.Adam(0.05), Trace_ELBO())
    result = svi.run(jax.random.key(5), 200, points, model, variance, images, progress_bar=False)
    assert np.abs(np.asarray(result.params["shift_auto_loc"]) - truth).max() < 0.3
    seeded = numpyro.handlers.seed(shifts_model, jax.random.key(6))
    draw = numpyro.handlers.trace(seeded).get_trace(points, model, variance)["y"]["value"]
    assert draw.shape == (4, DISC.pixels) and draw.dtype == jnp.complex64


def test_gradient_of_the_pose_marginal_is_the_expected_residual():
    """Fisher: d log p / d slice_r = sum_t p(r, t | y) conj(phase_t) C 2 (y - C phase_t slice_r) / variance."""
    bank, variance, transfer, weights, phases, shift_weights = marginal(rows=1)
    bank, weights = bank[:10], weights[:10]
    y = draw(np.random.default_rng(7), 1)
    with jax.enable_x64(True):

        def total(re, im):
            image = PoseMarginalImage(re + 1j * im, variance, transfer, weights, phases, shift_weights)
            return jnp.sum(image.log_prob(y))

        re, im = (np.asarray(part) for part in jax.jit(jax.grad(total, (0, 1)))(bank.real, bank.imag))
        image = PoseMarginalImage(bank, variance, transfer, weights, phases, shift_weights)
        share = np.asarray(image.responsibilities(y))[0]
    residual = y[0] - transfer[0] * phases[:, None] * bank
    expected = np.einsum("tr,tm,trm->rm", share, np.conj(phases), 2 * transfer[0] * residual / variance[0])
    assert np.allclose(re + 1j * im, expected, atol=1e-8)
