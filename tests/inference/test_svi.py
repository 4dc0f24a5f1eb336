"""Variational inference: tables under subsampling, guides of one's own, the mode as a special case."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer.autoguide import AutoNormal
from plain import SCHOOLS, eight_schools, imaged, one_gap, own_gaps, task

from hetmodels.errors import UsageError
from hetmodels.plain import PlainProblem
from inference.engine import run
from inference.guides import Point, Table
from inference.svi import SVI


def measured(data):
    """One normal latent per particle, measured by one real number of its image; mean and posterior in closed form."""
    centre = numpyro.sample("centre", dist.Normal(0, 2))
    with data.plate():
        z = numpyro.sample("z", dist.Normal(centre, 1))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=data.batch.images[:, 0].real)


@pytest.fixture(scope="module")
def particles():
    return imaged(np.linspace(14, 26, 25))


def closed_form(problem):
    y = np.asarray(problem.whole().images[:, 0].real, np.float64)
    precision = 1 / 4 + len(y) / 1.25
    centre = y.sum() / 1.25 / precision
    return y, centre, precision**-0.5


@pytest.mark.parametrize("batch_size", [None, 25, 10])
def test_a_table_of_latents_is_exact_whatever_the_batches(particles, batch_size):
    """25 particles in batches of 9, 9 and 7: padding must neither count nor move another particle's row."""
    problem = task(measured, particles)
    # the mode of the joint density, in closed form: z_i between its image and the centre
    y, _, _ = closed_form(problem)
    count = len(y)
    matrix = np.zeros((count + 1, count + 1))
    matrix[0, 0], matrix[0, 1:], matrix[1:, 0] = 0.25 + count, -1, -1
    matrix[1:, 1:] = np.eye(count) * (1 + 4)
    mode = np.linalg.solve(matrix, np.concatenate([[0], 4 * y]))
    engine = SVI(guide=Point(), local=Table(Point()), batch_size=batch_size, iterations=500, learning_rate=0.05)
    state = run(engine, problem, key=jax.random.key(0)).state
    assert np.allclose(state.params["centre_auto_loc"], mode[0], atol=0.02)
    assert np.allclose(state.table.value, mode[1:, None], atol=0.02)


def test_the_elbo_is_the_evidence_where_the_guide_holds_the_posterior(particles):
    """Without the latents the posterior is normal: ELBO = log evidence, in nats per particle."""

    def model(data):
        centre = numpyro.sample("centre", dist.Normal(0, 2))
        with data.plate():
            numpyro.sample("y", dist.Normal(centre, 1.25**0.5), obs=data.batch.images[:, 0].real)

    problem = task(model, particles)
    y, centre, sd = closed_form(problem)
    covariance = 1.25 * np.eye(len(y)) + 4.0
    evidence = -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    engine = SVI(iterations=1500, learning_rate=0.05, draws=2000)
    result = run(engine, problem, key=jax.random.key(0))
    reported = np.mean([row["objective"] for row in result.trace[-200:]])
    assert abs(reported - evidence / len(y)) < 0.01
    draws = result.draws["centre"]
    assert draws.shape == (1, 2000)
    assert abs(draws.mean() - centre) < 0.1 * sd
    assert abs(draws.std() / sd - 1) < 0.1


def test_a_parameter_of_a_model_function_is_recovered(particles):
    problem = task(own_gaps, particles)
    result = run(SVI(batch_size=13, iterations=500, learning_rate=0.2), problem, key=jax.random.key(0))
    assert abs(result.draws["centre"].mean() - 20.0) < 2.5
    assert "z" not in result.draws


def test_a_guide_of_ones_own_reads_the_images(particles):
    def amortised(model):
        def guide(data):
            loc = numpyro.param("loc", 15.0)
            numpyro.sample("centre", dist.Delta(loc))
            slope, scale = (
                numpyro.param("slope", 0.0),
                numpyro.param("scale", 0.5, constraint=dist.constraints.positive),
            )
            with data.plate():
                numpyro.sample("z", dist.Normal(slope * (data.batch.images[:, 0].real - loc), scale))

        return guide

    def centred(data):
        centre = numpyro.sample("centre", dist.Normal(0, 2))
        with data.plate():
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.sample("y", dist.Normal(centre + z, 0.5), obs=data.batch.images[:, 0].real)

    problem = task(centred, particles)
    engine = SVI(guide=amortised, batch_size=10, iterations=1000, learning_rate=0.05)
    state = run(engine, problem, key=jax.random.key(0)).state
    params = state.params | {"scale": jnp.exp(state.params["scale"])}
    assert state.table is None
    y, centre, _ = closed_form(problem)
    assert abs(float(params["loc"]) - centre) < 0.1
    assert abs(float(params["slope"]) - 0.8) < 0.05  # 1 / (1 + 0.5^2)
    assert abs(float(params["scale"]) - 0.2**0.5) < 0.05


def test_params_are_estimated_unless_given():
    def model(y):
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        numpyro.sample("y", dist.Normal(mu, scale), obs=y)

    y = np.random.default_rng(0).normal(3, 2, 200).astype(np.float32)
    problem = PlainProblem(model, {"y": y})
    engine = SVI(iterations=1500)
    draws = run(engine, problem, key=jax.random.key(0)).draws
    assert abs(draws["scale"].mean() - y.std()) < 0.1
    given = dataclasses.replace(problem, given={"scale": jnp.asarray(5.0)})
    state = run(engine, given, key=jax.random.key(0))
    assert "scale" not in state.draws
    assert abs(state.draws["mu"].std() / (5 / 200**0.5) - 1) < 0.3


def test_it_starts_where_it_is_told():
    start = {"mu": jnp.asarray(7.0), "tau": jnp.asarray(2.0)}
    problem = PlainProblem(eight_schools, SCHOOLS, start=start)
    engine = SVI(guide=partial(AutoNormal, init_scale=1e-4), iterations=1)
    state = engine.init(jax.random.key(0), problem)
    draw = engine.draw(jax.random.key(1), problem, state)
    assert np.isclose(draw["mu"], 7.0, atol=0.01)
    assert np.isclose(draw["tau"], 2.0, atol=0.01)
    assert draw["theta"].shape == (8,)


def test_one_compilation(particles):
    problem = task(one_gap, particles)
    engine = SVI(batch_size=10, iterations=3)
    run(engine, problem, key=jax.random.key(0))
    assert engine._machine(problem)[1]._cache_size() == 1


def test_bad_settings_and_models_are_refused_in_words():
    problem = PlainProblem(lambda: numpyro.sample("kind", dist.Bernoulli(0.5)), {})
    with pytest.raises(UsageError, match="kind takes integer values"):
        run(SVI(), problem, key=jax.random.key(0))
    with pytest.raises(ValueError, match="one of the two"):
        SVI(learning_rate=0.1, optimiser=optax.sgd(0.1))
    with pytest.raises(ValueError, match="at least 1"):
        SVI(draws=0)
