"""Chains: known posteriors, model functions, adaptation, what is refused."""

import dataclasses
from functools import partial

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import HMC, NUTS
from plain import SCHOOLS, eight_schools, imaged, one_gap, own_gaps, task

from hetmodels.errors import UsageError
from hetmodels.plain import PlainProblem
from inference.engine import run
from inference.mcmc import MCMC


@pytest.fixture(scope="module")
def schools():
    return run(MCMC(), PlainProblem(eight_schools, SCHOOLS), key=jax.random.key(0))


def test_eight_schools(schools):
    """Rubin 1981; the moments are those of long reference chains (posteriordb)."""
    draws = schools.draws
    assert draws["mu"].shape == (4, 1000)
    assert draws["theta"].shape == (4, 1000, 8)
    summary = az.summary(az.from_dict(posterior=draws))
    assert summary["r_hat"].max() < 1.01
    mcse = summary["mcse_mean"]
    assert abs(draws["mu"].mean() - 4.36) < 4 * mcse["mu"] + 0.05
    assert abs(draws["tau"].mean() - 3.60) < 4 * mcse["tau"] + 0.05
    assert abs(draws["mu"].std() - 3.3) < 0.25
    assert abs(draws["tau"].std() - 3.2) < 0.4
    assert abs(draws["theta"][..., 0].mean() - 6.2) < 0.4


def test_statistics_are_those_that_arviz_reads(schools):
    known = {"diverging", "acceptance_rate", "n_steps", "energy", "lp", "step_size", "reached_max_treedepth"}
    assert set(schools.stats) == known and not schools.stats["reached_max_treedepth"].any()
    assert all(value.shape == (4, 1000) for value in schools.stats.values())
    assert schools.stats["diverging"].mean() < 0.01
    assert az.bfmi(schools.stats["energy"]).min() > 0.5
    assert np.ptp(schools.stats["step_size"], axis=1).max() == 0
    assert {row["stage"] for row in schools.trace} == {"warm-up", "sampling"}


def test_supports_that_depend_on_other_sites_are_respected():
    """x < y for y ~ U(0, 1), x | y ~ U(0, y): means 1/2 and 1/4."""

    def model():
        y = numpyro.sample("y", dist.Uniform(0, 1))
        numpyro.sample("x", dist.Uniform(0, y))

    draws = run(MCMC(draws=1500, chains=2), PlainProblem(model, {}), key=jax.random.key(0)).draws
    assert np.all(draws["x"] <= draws["y"])
    assert abs(draws["y"].mean() - 0.5) < 0.04
    assert abs(draws["x"].mean() - 0.25) < 0.03


@pytest.mark.parametrize(
    "kernel",
    [partial(NUTS, target_accept_prob=0.9, dense_mass=True), partial(HMC, num_steps=12, trajectory_length=None)],
)
def test_kernels_plug_in_as_objects(kernel):
    def model(sd):
        numpyro.sample("x", dist.Normal(jnp.arange(3.0), sd).to_event(1))

    sd = np.array([0.1, 1, 5], np.float32)
    engine = MCMC(draws=1000, warmup=500, chains=2, kernel=kernel, block=37)
    draws = run(engine, PlainProblem(model, {"sd": sd}), key=jax.random.key(0)).draws["x"]
    assert draws.shape == (2, 1000, 3)
    assert np.all(np.abs(draws.mean((0, 1)) - np.arange(3)) < 0.2 * sd)
    assert np.all(np.abs(draws.std((0, 1)) / sd - 1) < 0.12)
    assert " at 0x" not in repr(engine)


def test_a_parameter_of_a_model_function_is_recovered():
    problem = task(one_gap, imaged(np.full(40, 22.0)))
    result = run(MCMC(draws=200, warmup=200, chains=2), problem, key=jax.random.key(0))
    assert abs(result.draws["gap"].mean() - 22.0) < 4 * result.draws["gap"].std()
    assert np.allclose(result.draws["half_gap"], result.draws["gap"] / 2)
    assert result.draws["noise"].shape == (2, 200, 1, problem.observation.disc.shells)


@pytest.mark.slow
def test_latents_of_particles_are_sampled_with_the_rest():
    gaps = 20 + 3 * np.random.default_rng(0).normal(size=12)
    problem = task(own_gaps, imaged(gaps, noise=0.2), sd=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.mcmc._MANY", 10)
        with pytest.warns(UserWarning, match="12 latents of particles are sampled jointly"):
            result = run(MCMC(draws=200, warmup=200, chains=2), problem, key=jax.random.key(0))
    assert result.draws["z"].shape == (2, 200, 12)
    found = result.draws["centre"][..., None] + 3 * result.draws["z"]
    error = (found.mean((0, 1)) - gaps) / found.std((0, 1))
    assert np.sqrt(np.mean(error**2)) < 2


def test_what_it_cannot_do_is_refused_in_words():
    def model():
        numpyro.sample("x", dist.Normal(0, numpyro.param("width", 1.0)))

    problem = PlainProblem(model, {})
    with pytest.raises(UsageError, match="width is a param site without a prior.*given="):
        run(MCMC(), problem, key=jax.random.key(0))
    draws = run(
        MCMC(draws=400, warmup=200, chains=2),
        dataclasses.replace(problem, given={"width": jnp.asarray(3.0)}),
        key=jax.random.key(0),
    ).draws
    assert abs(draws["x"].std() - 3) < 0.5
    with pytest.raises(UsageError, match="kind takes integer values"):
        run(MCMC(), PlainProblem(lambda: numpyro.sample("kind", dist.Bernoulli(0.5)), {}), key=jax.random.key(0))
    with pytest.raises(ValueError, match="at least 1"):
        MCMC(chains=0)

    def nowhere(y):
        numpyro.factor("y", jnp.where(numpyro.sample("x", dist.Normal(0, 1)) > 1e6, 0.0, -jnp.inf))

    far = PlainProblem(nowhere, {"y": np.zeros(1)}, start={"x": jnp.asarray(0.0)})
    with pytest.raises(UsageError, match="zero or not finite where the chains start"):
        run(MCMC(), far, key=jax.random.key(0))
