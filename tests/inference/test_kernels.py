"""Kernels of both back ends as objects of `MCMC`, and where the chains start."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from blackjax.adaptation.window_adaptation import base, build_schedule
from numpyro.infer import HMCECS, NUTS, HMCGibbs

from hetmodels.cli.settings import build
from hetmodels.plain import PlainProblem
from inference import blackjax_kernels
from inference.blackjax_kernels import MCLMC
from inference.engine import run
from inference.kernels import Pathfinder, log_density, scattered
from inference.mcmc import MCMC
from inference.testing import check_engine, check_resume, map_posterior


def normal(sd):
    numpyro.sample("x", dist.Normal(jnp.arange(3.0), sd).to_event(1))


SD = {"sd": np.array([0.1, 1, 5], np.float32)}


def test_adaptation_is_that_of_the_library():
    """Step by step on the same positions and acceptances; the library runs it as a whole, which cannot be resumed."""
    with pytest.warns(DeprecationWarning):
        init, update, final = base(True, 0.8)
    warmup, rng = 60, np.random.default_rng(0)
    chains = blackjax_kernels.NUTS().bind(lambda x, data: -(x["x"] ** 2).sum() / 2, warmup)
    keys = jax.random.split(jax.random.key(0), 1)
    ours = jax.tree.map(lambda leaf: leaf[0], chains.init(keys, {"x": jnp.ones((1, 3))}, {}).tuned)
    theirs = init({"x": jnp.ones(3)}, 1.0)
    adapt, step = jax.jit(chains._adapt), jax.jit(update)
    for done, stage in enumerate(build_schedule(warmup)):
        position, acceptance = {"x": jnp.asarray(rng.normal(size=3) * [0.1, 1, 5])}, jnp.asarray(rng.uniform())
        ours = adapt(done, ours, position, acceptance)
        theirs = step(theirs, tuple(stage), position, acceptance)
        np.testing.assert_allclose(ours.inverse_mass, theirs.inverse_mass_matrix, rtol=1e-5)
        if done < warmup - 1:
            np.testing.assert_allclose(ours.step_size, theirs.step_size, rtol=1e-5)
    np.testing.assert_allclose(ours.step_size, final(theirs)[0], rtol=1e-5)


def test_nuts_of_blackjax_finds_scales_and_moments():
    engine = MCMC(draws=500, warmup=500, chains=2, kernel=blackjax_kernels.NUTS())
    result = run(engine, PlainProblem(normal, SD), key=jax.random.key(0))
    found = np.sqrt(np.asarray(result.state.chains.tuned.inverse_mass))
    assert np.abs(found / SD["sd"] - 1).max() < 0.4
    assert np.ptp(result.stats["step_size"], axis=1).max() == 0
    draws = result.draws["x"]
    assert np.all(np.abs(draws.mean((0, 1)) - np.arange(3)) < 0.2 * SD["sd"])
    assert np.all(np.abs(draws.std((0, 1)) / SD["sd"] - 1) < 0.12)


def test_chains_of_blackjax_go_on_after_a_kill():
    engine = MCMC(draws=45, warmup=30, chains=2, block=20, kernel=blackjax_kernels.NUTS(dense_mass=True))
    problem = PlainProblem(normal, SD)
    result = run(engine, problem, key=jax.random.key(0))
    assert result.draws["x"].shape == (2, 45, 3) and result.stats["tree_depth"].shape == (2, 45)
    for steps in (1, 3):
        check_resume(engine, problem, jax.random.key(0), result, steps)


@pytest.mark.slow
def test_microcanonical_dynamics_obey_the_laws_of_engines():
    check_engine(MCMC(draws=500, warmup=300, chains=2, kernel=MCLMC()), jax.random.key(0))


@pytest.mark.slow
def test_a_map_is_drawn_by_both_back_ends():
    problem, mean, sd = map_posterior(jax.random.key(0))
    for kernel in (blackjax_kernels.NUTS(), MCLMC(thinning=20)):
        engine = MCMC(draws=500, warmup=500, chains=2, kernel=kernel)
        draws = run(engine, problem, key=jax.random.key(1)).draws["map"]
        flat = draws.reshape(-1, *draws.shape[2:])
        assert np.sqrt(np.mean(((flat.mean(0) - mean) / sd) ** 2)) < 0.15
        assert abs(np.mean(flat.std(0) / sd) - 1) < 0.05


@pytest.mark.slow
def test_chains_start_at_draws_of_the_best_normal():
    """Pathfinder on a normal far from where chains begin: its draws have the normal's own density."""
    problem = PlainProblem(lambda sd: numpyro.sample("x", dist.Normal(40.0, sd).to_event(1)), SD)
    keys = jax.random.split(jax.random.key(0), 4)
    far, density = scattered(problem, keys), log_density(problem)
    near = jax.jit(jax.vmap(lambda key, x: Pathfinder().move(key, lambda x: density(x, SD), x)))(keys, far)
    assert np.abs((np.asarray(far["x"]) - 40) / SD["sd"]).min() > 5
    assert np.sqrt(np.mean(((np.asarray(near["x"]) - 40) / SD["sd"]) ** 2)) < 2
    draws = run(MCMC(draws=100, warmup=100, chains=4, starts=Pathfinder()), problem, key=jax.random.key(0)).draws["x"]
    assert np.all(np.abs(draws.mean((0, 1)) - 40) < 0.3 * SD["sd"])


Y = np.concatenate([np.random.default_rng(0).normal(-3, 1, 30), np.random.default_rng(1).normal(3, 1, 30)])
DATA = {"y": Y.astype(np.float32)}


def two_kinds(y):
    centres = numpyro.sample("centres", dist.Normal(jnp.array([-1.0, 1.0]), 5.0).to_event(1))
    with numpyro.plate("all", len(y)):
        kind = numpyro.sample("kind", dist.Categorical(probs=jnp.ones(2) / 2))
        numpyro.sample("y", dist.Normal(centres[kind], 1.0), obs=y)


def test_discrete_sites_are_drawn_exactly_by_blocks():
    """Gibbs: the kinds from their exact conditional, the centres by NUTS; the posterior of the centres is normal."""

    def kernel(model):
        def kinds(rng_key, gibbs_sites, hmc_sites):
            log_p = dist.Normal(hmc_sites["centres"], 1.0).log_prob(DATA["y"][:, None])
            return {"kind": jax.random.categorical(rng_key, log_p)}

        return HMCGibbs(NUTS(model), gibbs_fn=kinds, gibbs_sites=["kind"])

    engine = MCMC(draws=400, warmup=200, chains=2, kernel=kernel)
    draws = run(engine, PlainProblem(two_kinds, DATA), key=jax.random.key(0)).draws
    assert draws["kind"].shape == (2, 400, 60) and draws["kind"].dtype.kind == "i"
    assert np.abs(np.sort(draws["centres"].mean((0, 1))) - [Y[:30].mean(), Y[30:].mean()]).max() < 0.15
    assert np.all(np.abs(draws["centres"].std((0, 1)) * np.sqrt(30) - 1) < 0.25)


@pytest.mark.slow
def test_energy_conserving_subsampling_takes_part_of_the_data():
    y = np.random.default_rng(0).normal(2.0, 1.0, 400).astype(np.float32)

    def model(y):
        centre = numpyro.sample("centre", dist.Normal(0, 5))
        with numpyro.plate("all", len(y), subsample_size=50):
            numpyro.sample("y", dist.Normal(centre, 1.0), obs=numpyro.subsample(y, event_dim=0))

    def kernel(model):
        return HMCECS(NUTS(model), num_blocks=5, proxy=HMCECS.taylor_proxy({"centre": jnp.asarray(y.mean())}))

    draws = run(MCMC(draws=500, warmup=300, chains=2, kernel=kernel), PlainProblem(model, {"y": y}),
                key=jax.random.key(0)).draws  # fmt: skip
    assert set(draws) == {"centre"}
    assert abs(draws["centre"].mean() - y.mean()) < 0.02 and abs(draws["centre"].std() * 20 - 1) < 0.2


def test_a_kernel_can_be_named_on_the_command_line():
    words = {"engine.kernel": "inference.blackjax_kernels.NUTS", "engine.kernel.dense_mass": "true"}
    assert build(MCMC, "engine", words).kernel == blackjax_kernels.NUTS(dense_mass=True)
