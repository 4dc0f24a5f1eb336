"""Laws of the likelihood's distributions: exact densities, moments of draws, use inside NumPyro."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from dense_gaussian import log_normal, real_coordinates
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from scipy.special import logsumexp

from hetmodels.imaging.distributions import FourierImage, LowRankFourierImage, PoseMarginalImage
from hetmodels.imaging.grids import Disc, phase_ramp
from hetmodels.imaging.rotations import uniform

DISC = Disc(8)


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
        assert np.allclose(image.log_prob(y), expected, rtol=0, atol=1e-9)
        share = np.asarray(image.responsibilities(y))
    for found, t, total in zip(share, terms, expected, strict=True):
        assert np.allclose(found, np.exp(t - total), rtol=0, atol=1e-9)
    single = [np.asarray(a, np.complex64 if np.iscomplexobj(a) else np.float32) for a in (*arguments, y)]
    coarse = PoseMarginalImage(*single[:-1]).log_prob(single[-1])
    assert coarse.dtype == jnp.float32 and np.allclose(coarse, expected, rtol=0, atol=1e-3)


def test_pose_marginal_with_shifted_templates_is_the_one_with_phases():
    bank, variance, transfer, weights, phases, shift_weights = marginal()
    y = draw(np.random.default_rng(1), 2)
    with jax.enable_x64(True):
        moved = (phases[:, None] * bank).reshape(-1, DISC.pixels)
        both = (shift_weights[:, None] + weights).ravel()
        expected = PoseMarginalImage(bank, variance, transfer, weights, phases, shift_weights).log_prob(y)
        assert np.allclose(PoseMarginalImage(moved, variance, transfer, both).log_prob(y), expected, atol=1e-10)
        many = PoseMarginalImage(bank, variance, transfer, weights, phases, shift_weights).log_prob(y[:, None, :])
        assert many.shape == (2, 2) and np.allclose(np.diag(many), expected, atol=1e-10)


def test_pose_marginal_with_one_candidate_is_the_image_distribution():
    bank, variance, transfer, *_ = marginal()
    y = draw(np.random.default_rng(2), 2)
    with jax.enable_x64(True):
        one = PoseMarginalImage(bank[:1], variance, transfer, contrast_sd=0.3).log_prob(y)
        assert np.allclose(one, FourierImage(transfer * bank[0], variance, 0.3).log_prob(y), atol=1e-10)


def test_image_and_low_rank_are_dense_gaussians():
    rng = np.random.default_rng(3)
    y, x, w, variance = draw(rng), draw(rng), draw(rng, 2), rng.uniform(0.5, 2, DISC.pixels)
    covariance = np.array([[1.0, 0.3], [0.3, 0.5]])
    noise, d = np.diag(np.tile(variance, 2)), real_coordinates(y - x)
    a, columns = real_coordinates(x), real_coordinates(w).T
    with jax.enable_x64(True):
        found = [
            FourierImage(x, variance, validate_args=True).log_prob(y),
            FourierImage(x, variance, 0.4, validate_args=True).log_prob(y),
            LowRankFourierImage(x, w, covariance, variance, validate_args=True).log_prob(y),
        ]
        mean, _ = LowRankFourierImage(x, w, covariance, variance).latents(y)
    spreads = [0, 0.16 * np.outer(a, a), columns @ covariance @ columns.T]
    for value, spread in zip(found, spreads, strict=True):
        assert float(value) == pytest.approx(log_normal(d, noise + spread), abs=1e-9)
    gain = covariance @ columns.T @ np.linalg.inv(noise + spreads[2])
    assert np.allclose(mean, gain @ d, atol=1e-10)


def examples():
    """One of each distribution in single precision, with a batch of two."""
    rng = np.random.default_rng(4)
    variance = rng.uniform(0.5, 2, (2, DISC.pixels)).astype(np.float32)
    x, w = draw(rng, 2).astype(np.complex64), 0.5 * draw(rng, 3).astype(np.complex64)
    spread = np.diag([1.0, 0.5, 2.0]).astype(np.float32)
    single = [np.asarray(a, np.complex64 if np.iscomplexobj(a) else np.float32) for a in marginal()]
    return [
        FourierImage(x, variance),
        FourierImage(x, variance, 0.5),
        LowRankFourierImage(x, w, spread, variance),
        PoseMarginalImage(*single, contrast_sd=0.3),
    ]


@pytest.mark.parametrize("image", examples(), ids=["image", "contrast", "low rank", "pose"])
def test_draws_have_the_mean_and_the_variance(image):
    n = 40_000
    y = np.asarray(image.sample(jax.random.key(0), (n,)))
    assert y.shape == (n, 2, DISC.pixels) and y.dtype == np.complex64
    mean, variance = np.asarray(image.mean), np.asarray(image.variance)
    assert np.abs((y.mean(0) - mean) / np.sqrt(variance)).max() < 6 / np.sqrt(n)
    power = np.abs(y - mean) ** 2
    assert np.abs((power.mean(0) - variance) / power.std(0)).max() < 6 / np.sqrt(n)


@pytest.mark.parametrize("image", examples(), ids=["image", "contrast", "low rank", "pose"])
def test_density_of_draws_is_normalised(image):
    """E[p_shifted / p] = 1 under p: the ratio of two densities of the family has mean one, by importance weights."""
    y = image.sample(jax.random.key(1), (20_000,))
    leaves, kind = jax.tree.flatten(image)
    near = jax.tree.unflatten(kind, [x * 1.003 if jnp.iscomplexobj(x) else x for x in leaves])
    ratio = np.exp(np.asarray(near.log_prob(y) - image.log_prob(y), float))
    assert np.all(np.abs(ratio.mean(0) - 1) < 5 * ratio.std(0) / np.sqrt(len(ratio)))


@pytest.mark.parametrize("image", examples(), ids=["image", "contrast", "low rank", "pose"])
def test_distributions_are_pytrees(image):
    """They pass through jit and vmap, keep their shape, and expand under a plate."""
    y = image.sample(jax.random.key(2))
    expected = image.log_prob(y)
    assert np.allclose(jax.jit(lambda d, v: d.log_prob(v))(image, y), expected, rtol=1e-5)
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
        shift = numpyro.sample("shift", dist.Normal(0, 2).expand([2]).to_event(1))
        numpyro.sample("y", FourierImage(model * phase_ramp(points, shift), level * variance, 0.1), obs=images)


def shifted_images(rows):
    rng = np.random.default_rng(6)
    model = 3 * slices(np.eye(3)[None], 1, rng)[0].astype(np.complex64)
    points = (DISC.index / DISC.size).astype(np.float32)
    truth = rng.normal(0, 0.5, (rows, 2)).astype(np.float32)
    variance = np.ones((rows, DISC.pixels), np.float32)
    clean = model * phase_ramp(points, truth)
    return points, model, variance, FourierImage(clean, 0.5 * variance).sample(jax.random.key(3)), truth


def test_nuts_recovers_shifts_and_the_noise_level():
    *arguments, truth = shifted_images(6)
    sampler = MCMC(NUTS(shifts_model), num_warmup=200, num_samples=300, progress_bar=False)
    sampler.run(jax.random.key(4), *arguments)
    found = sampler.get_samples()
    assert sampler.get_extra_fields()["diverging"].sum() == 0
    error = np.asarray(found["shift"]).mean(0) - truth
    sd = np.asarray(found["shift"]).std(0)
    assert np.abs(error / sd).max() < 4 and sd.max() < 0.3
    assert np.abs(found["level"].mean() - 0.5) < 4 * found["level"].std()


def test_svi_runs_and_prior_predictive_has_the_right_shape():
    points, model, variance, images, truth = shifted_images(4)
    svi = SVI(shifts_model, AutoNormal(shifts_model), numpyro.optim.Adam(0.03), Trace_ELBO())
    result = svi.run(jax.random.key(5), 400, points, model, variance, images, progress_bar=False)
    assert np.abs(np.asarray(result.params["shift_auto_loc"]) - truth).max() < 0.3
    draws = numpyro.infer.Predictive(shifts_model, num_samples=3)(jax.random.key(6), points, model, variance)
    assert draws["y"].shape == (3, 4, DISC.pixels) and draws["y"].dtype == jnp.complex64


def test_gradient_of_the_pose_marginal_is_the_expected_residual():
    """Fisher: d log p / d slice_r = sum_t p(r, t | y) conj(phase_t) C 2 (y - C phase_t slice_r) / variance."""
    bank, variance, transfer, weights, phases, shift_weights = marginal(rows=1)
    bank, weights = bank[:10], weights[:10]
    y = draw(np.random.default_rng(7), 1)
    with jax.enable_x64(True):

        def total(re, im):
            image = PoseMarginalImage(re + 1j * im, variance, transfer, weights, phases, shift_weights)
            return jnp.sum(image.log_prob(y))

        re, im = jax.grad(total, (0, 1))(bank.real, bank.imag)
        share = PoseMarginalImage(bank, variance, transfer, weights, phases, shift_weights).responsibilities(y)[0]
    residual = y[0] - transfer[0] * phases[:, None] * bank
    expected = np.einsum("tr,tm,trm->rm", share, np.conj(phases), 2 * transfer[0] * residual / variance[0])
    assert np.allclose(re + 1j * im, expected, atol=1e-8)
