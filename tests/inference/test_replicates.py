"""Posterior predictive replicates, and the groups of ArviZ's container from every engine."""

import dataclasses

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from plain import SCHOOLS, eight_schools
from simulated import problem, simulated

from hetmodels.families import Classes
from hetmodels.observation import Contrast
from hetmodels.plain import PlainProblem
from hetmodels.posterior import Posterior
from inference import EM, MAP, MCMC, SMC, SVI, blackjax_kernels, fit
from inference.replicates import _images, of_function

GROUPS = {"posterior", "log_likelihood", "posterior_predictive", "observed_data"}


def groups(data):
    """Names of the groups of either container."""
    return set(data.groups()) if hasattr(data, "_groups_all") else {name.strip("/") for name in data.groups} - {""}


@pytest.mark.slow
def test_a_family_has_replicates_of_held_out_images(tmp_path):
    """The groups of a fitted family, and the file they go to."""
    data = simulated(n=200, size=12, snr=0.5)
    found = fit(Classes(classes=2), data.particles, EM(iterations=3), key=jax.random.key(0), contrast=Contrast(0.2))
    container = found.to_arviz()
    assert groups(container) >= GROUPS
    seen = container["observed_data"]["shell_power"]
    made = container["posterior_predictive"]["shell_power"]
    assert seen.dims == ("checked_particle", "shell") and made.dims == ("chain", "draw", *seen.dims)
    held = np.flatnonzero(found.local["held_out"])
    assert set(seen["checked_particle"].values) <= set(held)
    ratio = (made.mean(("chain", "draw", "checked_particle")) / seen.mean("checked_particle")).values[1:]
    assert np.all(np.abs(ratio - 1) < 0.35)
    found.save(tmp_path / "posterior.nc")
    again = Posterior.load(tmp_path / "posterior.nc").to_arviz()
    assert again["posterior_predictive"]["shell_power"].dims == made.dims


def test_replicates_of_the_model_that_made_the_images_have_their_power():
    """Images drawn from the model, latents from their exact posterior: powers agree within sampling error."""
    data = simulated(n=300, size=12, snr=0.5)
    task = problem(data.particles, Classes(classes=2), contrast=Contrast(0.1))
    shared = task.shared(task.initial(jax.random.key(1)))
    shared["maps"] = 3 * jnp.sqrt(jnp.mean(jnp.abs(task.whole().images) ** 2)) * shared["maps"] / shared["maps"].std()
    batch, _, _ = task.simulate(jax.random.key(2), shared, task.whole())
    local = jax.jit(task.infer)(jax.random.key(3), shared, batch)
    known = {name: getattr(local, name) for name in ("mean", "covariance", "responsibilities", "contrast")}
    known |= {"rotation": batch.rotation, "shift": batch.shift}
    made = jax.jit(lambda: _images(task, jax.random.key(4), shared, known, batch))()
    power = lambda images: np.bincount(task.observation.disc.shell, np.mean(np.abs(images) ** 2, 0))  # noqa: E731
    seen, signal = power(batch.images)[1:], power(np.asarray(made))[1:]
    pixels = np.bincount(task.observation.disc.shell)[1:]
    assert np.all(np.abs(signal / seen - 1) < 5 * np.sqrt(2 / (300 * pixels)) + 0.02), signal / seen


def test_replicates_of_a_function_have_its_predictive_moments():
    """y ~ N(x, 2) with x ~ N(1, 0.5): replicates ~ N(1, sqrt(4.25)); a factor has none."""

    def model(y):
        x = numpyro.sample("x", dist.Normal(0, 10))
        numpyro.sample("y", dist.Normal(x, 2.0).expand([len(y)]).to_event(1), obs=y)
        numpyro.factor("penalty", -(x**2))

    shared = {"x": 1 + 0.5 * np.random.default_rng(0).normal(size=(4, 500))}
    made = of_function(PlainProblem(model, {"y": jnp.zeros(3)}), shared, jax.random.key(0))
    assert set(made) == {"posterior_predictive/y"}
    value = made["posterior_predictive/y"]
    assert value.shape == (4, 500, 3)
    assert abs(value.mean() - 1) < 0.1 and abs(value.std() - np.sqrt(4.25)) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [
        MAP(),
        SVI(iterations=20, draws=30),
        SMC(draws=40, chains=2, moves=2),
        MCMC(draws=200, warmup=150, chains=2, kernel=blackjax_kernels.NUTS()),
    ],
    ids=lambda engine: type(engine).__name__,
)
def test_every_engine_fills_the_groups(engine):
    found = fit(eight_schools, SCHOOLS, engine, key=jax.random.key(0))
    container = found.to_arviz()
    assert groups(container) >= GROUPS | ({"sample_stats"} if found.stats else set())
    shape = (found.chains, found.draws, 8)
    assert container["posterior_predictive"]["effects"].shape == shape
    assert container["log_likelihood"]["effects"].shape == shape
    assert container["observed_data"]["effects"].shape == (8,)
    if isinstance(engine, SMC):
        assert found.extra["log_evidence"].shape == (2,)
    if isinstance(engine, MCMC):
        assert {"diverging", "energy", "tree_depth"} <= set(container["sample_stats"].data_vars)
        assert np.isfinite(az.loo(container).se)
    assert dataclasses.is_dataclass(found)
