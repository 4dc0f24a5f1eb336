"""The mode by gradients: unbiased batches, what it keeps, what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from plain import dumbbell, imaged, one_gap, own_gaps, task

from hetmodels.errors import UsageError
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.model import observe
from hetmodels.observation import Refined
from hetmodels.plain import PlainProblem
from inference.engine import run
from inference.map import MAP
from inference.sites import Rows
from inference.testing import map_posterior


def test_batches_estimate_the_density_of_all_particles():
    particles = imaged(np.full(25, 20.0))
    problem = task(one_gap, particles)
    x = {"gap": jnp.asarray(18.0)}
    whole = problem.log_density(x, problem.whole(), jacobian=False)
    total = 0.0
    for batch in problem.batches(0, jax.random.key(0), 10, True):
        with Rows(batch):
            total += float(batch.weight.sum()) / 25 * problem.log_density(x, batch, jacobian=False)
    assert np.isclose(total, whole, rtol=1e-5)


def test_a_parameter_of_a_model_function_is_recovered():
    problem = task(one_gap, imaged(np.full(60, 22.0)))
    results = []
    for engine in (MAP(), MAP(batch_size=20, iterations=300, learning_rate=0.3)):
        draw = engine.draw(None, problem, run(engine, problem, key=jax.random.key(0)).state)
        results.append(float(draw["gap"]))
        assert np.isclose(draw["half_gap"], draw["gap"] / 2)
    assert abs(results[0] - 22.0) < 0.3
    assert abs(results[0] - results[1]) < 0.02


def test_param_sites_are_estimated():
    def model(data):
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        volume = dumbbell(22.0)
        with data.plate():
            observe("images", dataclasses.replace(volume, weights=volume.weights * scale), data)

    problem = task(model, imaged(np.full(60, 22.0)))
    engine = MAP()
    assert abs(float(engine.draw(None, problem, run(engine, problem, key=jax.random.key(0)).state)["scale"]) - 1) < 0.05


@pytest.mark.slow
def test_the_spectrum_stays_at_its_start():
    problem, _, _ = map_posterior(jax.random.key(0))
    given = problem.given["map_tau2"]
    free = dataclasses.replace(problem, given={}, start={})
    engine = MAP(iterations=3)
    draw = engine.draw(None, free, run(engine, free, key=jax.random.key(0)).state)
    assert np.allclose(draw["map_tau2"], given, rtol=1e-5)


def test_what_it_cannot_do_is_refused_in_words():
    particles = imaged(np.full(4, 20.0))
    cases = {
        "latents of each particle (z)": task(own_gaps, particles),
        "latents of each particle (pose_rotation, pose_shift)": task(one_gap, particles, pose=Refined()),
        "nothing to estimate": dataclasses.replace(task(one_gap, particles), given={"gap": jnp.asarray(20.0)}),
        "cannot keep half sets apart": dataclasses.replace(task(one_gap, particles), halves=True),
        "kind takes integer values": PlainProblem(lambda: numpyro.sample("kind", dist.Bernoulli(0.5)), {}),
    }
    for words, problem in cases.items():
        with pytest.raises(UsageError) as caught:
            run(MAP(), problem, key=jax.random.key(0))
        assert words in str(caught.value)
    with pytest.raises(ValueError, match="one of the two"):
        MAP(learning_rate=0.1, optimiser=optax.sgd(0.1))
    with pytest.raises(ValueError, match="at least 1"):
        MAP(iterations=0)


def test_any_optimiser_of_optax_serves():
    problem = task(one_gap, imaged(np.full(60, 22.0)))
    engine = MAP(optimiser=optax.adam(0.3), iterations=200)
    draw = engine.draw(None, problem, run(engine, problem, key=jax.random.key(0)).state)
    assert abs(float(draw["gap"]) - 22.0) < 0.3
    assert " at 0x" not in repr(engine)


def test_which_families_it_serves():
    assert MAP.lacks(Homogeneous) is None
    assert MAP.lacks(Homogeneous()) is None
    assert MAP.lacks(one_gap) is None
