"""Chains and populations of both back ends find posteriors whose moments are known."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from posteriors import check, conjugate_regression, earnings, garch, kidscore, mixture, normal_inverse_gamma

from hetmodels.plain import PlainProblem
from inference import blackjax_kernels
from inference.engine import run
from inference.mcmc import MCMC
from inference.smc import SMC

MODELS = [conjugate_regression, normal_inverse_gamma, mixture, kidscore, earnings, garch]


def numpyro_nuts(known, draws=1000):
    return run(MCMC(draws=draws, warmup=1000), PlainProblem(known.model, known.data), key=jax.random.key(1)).draws


def blackjax_nuts(known, draws=1000):
    engine = MCMC(draws=draws, warmup=1000, kernel=blackjax_kernels.NUTS())
    return run(engine, PlainProblem(known.model, known.data), key=jax.random.key(2)).draws


def smc(known, draws=1000):
    engine = SMC(draws=draws, reference=known.reference)
    result = run(engine, PlainProblem(known.model, known.data), key=jax.random.key(3))
    if known.log_evidence is not None:
        found = np.asarray(result.state.log_evidence)
        assert np.abs(found - known.log_evidence).max() < 0.15, (found, known.log_evidence)
    return result.draws


@pytest.mark.parametrize(("model", "engine"), [(normal_inverse_gamma, blackjax_nuts), (mixture, smc)])
def test_moments_are_those_known(model, engine):
    known = model()
    check(known, engine(known))


@pytest.mark.slow
@pytest.mark.parametrize("engine", [numpyro_nuts, blackjax_nuts, smc])
@pytest.mark.parametrize("model", MODELS)
def test_moments_are_those_known_in_full(model, engine):
    known = model()
    check(known, engine(known, 4000))


def test_populations_find_both_modes_and_their_evidence():
    """y = x^2 + noise: two modes, of equal mass but for the prior's shift."""

    def model(y):
        x = numpyro.sample("x", dist.Normal(0.3, 1.5))
        numpyro.sample("y", dist.Normal(x**2, 0.3), obs=y)

    line = np.linspace(-6, 6, 40001)
    density = np.exp(-0.5 * ((line - 0.3) / 1.5) ** 2 - 0.5 * ((4 - line**2) / 0.3) ** 2) / (2 * np.pi * 1.5 * 0.3)
    evidence = np.log(density.sum() * (line[1] - line[0]))
    right = density[line > 0].sum() / density.sum()
    result = run(SMC(), PlainProblem(model, {"y": np.float32(4.0)}), key=jax.random.key(0))
    assert np.abs(np.asarray(result.state.log_evidence) - evidence).max() < 0.2
    share = (result.draws["x"] > 0).mean(1)
    assert np.all(np.abs(share - right) < 0.1)
    assert set(result.stats) == {"lp"}
