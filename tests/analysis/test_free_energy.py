"""Free energy along a path: likelihoods of the images, the walk's posterior, and a barrier that counting misses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import simulated

from hetmodels.analysis.free_energy import Profile, path_likelihood, path_model
from hetmodels.analysis.mixtures import mixture_weights
from hetmodels.errors import UsageError
from hetmodels.model import Observed, image_ratio, render
from hetmodels.observation import Contrast, Observation
from hetmodels.plain import PlainProblem
from hetmodels.posterior import Posterior
from hetmodels.volumes.voxels import Voxels
from inference import MCMC
from inference.engine import run
from inference.profiles import KERNEL, path_posterior

NODES = 17


def double_well(barrier):
    """Two equal wells at a quarter and three quarters of the path [kT], (nodes,)."""
    x = np.linspace(-1, 1, NODES)
    return barrier * (1 - (x / 0.5) ** 2) ** 2 / (1 + np.maximum(0, np.abs(x) - 0.5) * 4)


def images(rng, energy, count, error):
    """Likelihoods of images whose own estimate of the place has the error given, in nodes, and those estimates."""
    weights = np.exp(-energy) / np.exp(-energy).sum()
    place = rng.choice(NODES, count, p=weights)
    seen = place + error * rng.standard_normal(count)
    return -0.5 * ((seen[:, None] - np.arange(NODES)) / error) ** 2, seen


def test_likelihoods_are_those_of_the_images_one_by_one():
    data = simulated(n=20, size=12, pixel=12.0, states=2)
    obs = Observation(data.particles.disc, 12.0, 1, 20, contrast=Contrast())
    noise = np.full((1, obs.disc.shells), 0.7, np.float32)
    found = path_likelihood(data.truth, data.particles, noise, Contrast())
    batch = next(iter(data.particles.batches(np.arange(20), 20)))
    seen = Observed(batch, obs, jnp.asarray(noise), None)
    for node, values in enumerate(data.truth):
        exact = image_ratio(seen, render(Voxels(jnp.asarray(values, jnp.float32), 12.0, 1), seen, {}))
        exact = exact - obs.zero_ratio(batch.images, seen.variance)
        np.testing.assert_allclose(found[:, node], exact, atol=2e-3)
    with pytest.raises(UsageError, match="maps must have shape"):
        path_likelihood(data.truth[:, :8, :8, :8], data.particles, noise)


def test_a_profile_is_read_from_draws():
    draws = np.array([[[0.0, 3.0, 1.0], [1.0, 5.0, 1.0]]])
    found = Profile.of(Posterior(None, {"free_energy": draws}, False))
    assert found.draws.tolist() == [[0, 3, 1], [0, 4, 0]] and found.median.tolist() == [0, 3.5, 0.5]
    assert found.barrier(0, 2).tolist() == [3, 4] and found.barrier(2, 0).tolist() == [2, 4]
    with pytest.raises(UsageError, match="draws of free_energy"):
        Profile.of(Posterior(None, {"free_energy": draws[:, :1]}, True))


def test_weights_of_an_ensemble_reach_their_certificate_and_a_twin_shares_them():
    rng = np.random.default_rng(0)
    log_density, _ = images(rng, double_well(3.0), 2000, 2.0)
    one = mixture_weights(log_density)
    twin = mixture_weights(np.concatenate([log_density, log_density[:, 4:5]], axis=1))
    assert one.gap < 1e-5 and twin.gap < 1e-5
    assert abs(one.log_likelihood - twin.log_likelihood) < 2e-5


@pytest.mark.slow
def test_a_barrier_of_seven_and_a_half_is_not_read_as_less():
    """Each image's place has an error of a quarter of the wells' distance; counting estimates reads about 1 kT."""
    energy = double_well(7.5)
    log_density, seen = images(np.random.default_rng(1), energy, 8000, 2.0)
    found = Profile.of(path_posterior(path_model, log_density, key=jax.random.key(0), draws=300, warmup=300, chains=2))
    counts = np.bincount(np.clip(np.rint(seen), 0, NODES - 1).astype(int), minlength=NODES)
    counted = np.log(counts[4] / counts[8])
    low, median, high = np.quantile(found.barrier(4, 12), [0.05, 0.5, 0.95])
    assert counted < 3.5 < low < 7.5 < high and median > 4.5


@pytest.mark.slow
def test_bands_cover_nine_truths_in_ten():
    """200 profiles drawn from the prior, each seen in 100 images with an error of one node.

    The bands are those of a right posterior if 90 % of the nodes' energies lie inside on average over the prior. The
    share over 200 sets has a standard error of about 1.2 %, so that a right sampler fails on one seed in ten thousand.
    """
    rng, nodes, inside, data = np.random.default_rng(0), 6, [], {}
    start = {"strength": jnp.ones(()), "step": jnp.zeros(nodes - 1)}
    problem = PlainProblem(path_model, data, start=start)
    engine = MCMC(draws=200, warmup=200, chains=1, block=200, kernel=KERNEL)
    for number in range(200):
        strength = np.exp(3 * rng.standard_normal())
        energy = np.concatenate([[0.0], rng.standard_normal(nodes - 1).cumsum()]) / np.sqrt(strength)
        weights = np.exp(energy.min() - energy)
        seen = rng.choice(nodes, 100, p=weights / weights.sum()) + rng.standard_normal(100)
        data["log_density"] = jnp.asarray(-0.5 * (seen[:, None] - np.arange(nodes)) ** 2, jnp.float32)
        result = run(engine, problem, key=jax.random.key(number))
        low, high = Profile.of(Posterior(None, result.draws, False)).band()
        inside.append((low <= energy - energy.min()) & (energy - energy.min() <= high))
    assert 0.85 < np.mean(inside) < 0.95, np.mean(inside, axis=0)
