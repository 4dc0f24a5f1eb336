"""The learnt density of latents, against densities that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetmodels.errors import UsageError
from hetmodels.posterior import Posterior
from inference.score_prior import Diffusion, population

QUICK = Diffusion(hidden=48, layers=2, steps=2500, batch=256)
SD = 0.35


def true_log_density(z):
    """Two modes along a skew axis: an equal mixture of N(±(1.5, 1), SD² I)."""
    centres = np.array([[1.5, 1.0], [-1.5, -1.0]])
    square = ((np.asarray(z)[:, None] - centres) ** 2).sum(-1)
    return np.logaddexp.reduce(-0.5 * square / SD**2, axis=1) - np.log(2 * 2 * np.pi * SD**2)


def drawn(n, seed, sd=SD):
    rng = np.random.default_rng(seed)
    sign = np.where(rng.uniform(size=(n, 1)) < 0.5, 1.0, -1.0)
    return (sign * [1.5, 1.0] + sd * rng.normal(size=(n, 2))).astype(np.float32)


@pytest.fixture(scope="module")
def bimodal():
    """Particles whose means are narrower than the mixture, the rest of its width their own uncertainty."""
    mean = drawn(3000, 0, sd=(SD**2 - 0.04) ** 0.5)
    held = np.arange(3000) % 3 == 0
    local = {"mean": mean, "covariance": np.tile(0.04 * np.eye(2), (3000, 1, 1)), "held_out": held}
    return population(Posterior(None, {"a": np.zeros((1, 1))}, True, local=local), jax.random.key(0), QUICK)


def test_the_density_is_that_of_the_aggregate_posterior(bimodal):
    """A mixture of two normal laws: Kullback-Leibler divergence below 0.08 nats of the 0.98 that N(0, I) lacks."""
    z = drawn(1000, 1)
    found = np.asarray(jax.jit(bimodal.prior.log_density)(jnp.asarray(z)))
    off = true_log_density(z) - found
    assert -0.05 < off.mean() < 0.08
    normal = -0.5 * (z**2).sum(1) - np.log(2 * np.pi)
    wanted = (true_log_density(z) - normal).mean()
    assert abs(bimodal.gain - wanted) < 0.08 + 2 * bimodal.error
    assert bimodal.error < 0.1


def test_its_draws_lie_where_the_particles_do(bimodal):
    z = np.asarray(jax.jit(bimodal.prior.sample, static_argnums=1)(jax.random.key(1), 2000))
    assert abs((z[:, 0] > 0).mean() - 0.5) < 0.06
    folded = z * np.sign(z[:, :1])
    assert np.allclose(folded.mean(0), [1.5, 1.0], atol=0.08)
    assert np.allclose(folded.std(0), SD, rtol=0.15)
    assert (true_log_density(z) < -6).mean() < 0.02  # N(0, I) has a third of its draws in the hole
    path = np.asarray(bimodal.prior.between(jnp.array([1.5, 1.0]), jnp.array([1.5, 1.0]) * 0.9, 5))
    assert np.allclose(path[[0, -1]], [[1.5, 1.0], [1.35, 0.9]], atol=0.02)


@pytest.mark.slow
def test_it_is_no_better_than_the_normal_law_where_that_is_true():
    """Gibbs: no density has a higher mean log density than the true one; and little is lost by learning."""
    rng = np.random.default_rng(3)
    mean = 0.8 * rng.normal(size=(4000, 2))
    local = {"mean": mean, "covariance": np.tile(0.36 * np.eye(2), (4000, 1, 1)), "held_out": np.arange(4000) % 2 == 0}
    found = population(Posterior(None, {"a": np.zeros((1, 1))}, True, local=local), jax.random.key(0), QUICK)
    assert -0.03 < found.gain < 0.01 + 2 * found.error


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="more particles than dims"):
        Diffusion().fit(jax.random.key(0), np.zeros((2, 3)))
    with pytest.raises(UsageError, match="held out"):
        population(Posterior(None, {"a": np.zeros((1, 1))}, True), jax.random.key(0))
    with pytest.raises(ValueError, match="positive"):
        Diffusion(steps=0)
