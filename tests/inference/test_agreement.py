"""All engines see one likelihood: on a homogeneous map with known poses and spectra they give the same answer."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.autoguide import AutoDelta
from simulated import problem, simulated

from hetmodels.data.packed import Loading
from hetmodels.families.homogeneous import Homogeneous
from inference.em import EM
from inference.engine import run
from inference.machine import Machine
from inference.map import MAP
from inference.mcmc import MCMC
from inference.moments import Moments
from inference.svi import SVI
from inference.testing import normal_posterior

EXACT = EM(iterations=60, learn_spectrum=False, learn_noise=False, tolerance=-1.0, solver_steps=8, batch_size=200)


def fixed(**settings):
    """A map of 16^3 voxels at known poses, its spectrum and the noise given."""
    data = simulated(**({"n": 350, "size": 16, "snr": 0.2} | settings))
    task = problem(data.particles, Homogeneous())
    shared = task.shared(task.initial(jax.random.key(0)))
    return dataclasses.replace(task, given={name: shared[name] for name in ("map_tau2", "noise")})


@pytest.fixture(scope="module")
def task():
    return fixed()


@pytest.fixture(scope="module")
def reference(task):
    return np.asarray(run(EXACT, task, key=jax.random.key(0)).state.maps[0, 0])


def apart(a, b):
    return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


@pytest.mark.parametrize(
    "engine",
    [
        MAP(),
        MAP(batch_size=100, iterations=800, learning_rate=0.05),
        Moments(batch_size=150),
        SVI(guide=AutoDelta, batch_size=150, iterations=300),
    ],
    ids=["map on all data", "map in batches", "moments", "svi with a point"],
)
def test_maps_are_less_than_a_percent_from_em(task, reference, engine):
    result = run(engine, task, key=jax.random.key(1))
    found = engine.draw(jax.random.key(2), task, result.state)
    assert apart(found["map"], reference) < 0.01
    assert np.array_equal(found["map_tau2"], task.given["map_tau2"])


def test_a_step_on_maps_takes_the_whole_batch_at_once(task):
    machine = SimpleNamespace(problem=task)
    assert Machine.parts(machine, task.batch(np.arange(100)), None) == 1
    assert Machine.parts(machine, task.batch(np.arange(100)), 25) == 4


@pytest.mark.slow
def test_the_mean_of_a_normal_guide_is_the_map_of_em(task, reference):
    engine = SVI(batch_size=150, iterations=500, draws=1000)
    result = run(engine, task, key=jax.random.key(1))
    # the mean of 1000 draws is off by the posterior's own spread over sqrt(1000)
    spread = np.linalg.norm(result.draws["map"].std((0, 1))) / np.linalg.norm(reference)
    assert apart(result.draws["map"].mean((0, 1)), reference) < 0.01 + 2 * spread / np.sqrt(1000)


def test_resident_and_streamed_images_give_the_same(task):
    streamed = dataclasses.replace(task, particles=task.particles.with_loading(Loading(cache=0)))
    assert task.particles.resident
    assert not streamed.particles.resident
    engine = EM(iterations=3, batch_size=64)
    one, other = (run(engine, p, key=jax.random.key(0)).state for p in (task, streamed))
    assert np.array_equal(one.maps, other.maps)
    assert np.array_equal(one.noise, other.noise)


def check_chains(task, engine, errors):
    """Mean of the draws within standard errors of the mode, standard deviations those of the exact posterior."""
    mean, covariance, unravel = normal_posterior(task)
    mode = np.asarray(task.shared(unravel(mean))["map"])
    result = run(engine, task, key=jax.random.key(3))
    map_ = result.draws["map"]
    assert map_.shape[:2] == (engine.chains, engine.draws)
    assert not result.stats["diverging"].any()
    tau2 = task.given["map_tau2"]
    to_white = jax.jit(jax.vmap(lambda map_: task.family.sites({"map": map_, "map_tau2": tau2})["map_white"]))
    white = np.asarray(to_white(jnp.asarray(map_.reshape(-1, *mode.shape))), np.float64)
    eigen, axes = np.linalg.eigh(covariance)
    best = axes[:, eigen < 0.5].T  # the data say more of these than the prior
    best = best[:: max(1, len(best) // 20)][:20]
    drawn = (white @ best.T).reshape(engine.chains, engine.draws, -1)
    sd = np.sqrt(np.einsum("fi,ij,fj->f", best, covariance, best))
    off = (drawn.mean((0, 1)) - best @ np.asarray(mean)) / sd
    # an error of the mean for as many independent draws as there are draws; chains of this length are no better
    assert np.abs(off).max() < errors / np.sqrt(engine.chains * engine.draws)
    ratio = drawn.std((0, 1)) / sd
    assert abs(ratio.mean() - 1) < 0.05
    return mode, ratio


@pytest.mark.slow
def test_chains_agree_with_the_mode_on_a_small_box():
    task = fixed(n=40, size=8, pixel=24.0, snr=0.1)
    check_chains(task, MCMC(draws=400, warmup=300, chains=2, block=100), errors=4.0)


@pytest.mark.slow
def test_chains_agree_with_the_map_of_em(task, reference):
    mode, ratio = check_chains(task, MCMC(draws=1500, warmup=700, chains=2, block=100), errors=3.5)
    assert apart(mode, reference) < 0.01
    assert np.abs(ratio - 1).max() < 0.08
