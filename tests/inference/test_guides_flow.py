"""Flows: maps that can be turned back, densities that integrate to one, and posteriors with two modes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from plain import imaged, task

from inference.elbo import Annealing
from inference.encoder import Encoder
from inference.engine import run
from inference.flows import Flow, Splines
from inference.guides import Table
from inference.svi import SVI

WIDTH = 1.0


def folded(data):
    """The square of a latent is measured: its posterior has two modes of opposite sign."""
    with data.plate():
        z = numpyro.sample("z", dist.Normal(0, 1).expand([1]).to_event(1))
        seen = jnp.abs(data.batch.images[:, 0].real)
        numpyro.sample("y", dist.Normal(z[:, 0] ** 2, WIDTH), obs=seen)


def quadrature(y):
    """Log evidence of each particle, and posterior variance."""
    z = np.linspace(-6, 6, 4001)
    log_p = -0.5 * z**2 - 0.5 * ((y[:, None] - z**2) / WIDTH) ** 2 - np.log(2 * np.pi * WIDTH)
    p = np.exp(log_p) * (z[1] - z[0])
    return np.log(p.sum(1)), (p * z**2).sum(1) / p.sum(1)


def test_splines_are_turned_back_and_know_their_slopes():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        spline = Splines(jnp.asarray(rng.normal(size=(3, 2, 14))))
        x = jnp.asarray(rng.normal(size=(3, 2)) * 3)
        y = spline(x)
        assert np.allclose(spline._inverse(y), x, atol=1e-9)
        up, down = (spline(x + h) for h in (1e-6, -1e-6))
        assert np.allclose(spline.log_abs_det_jacobian(x, y), np.log((up - down) / 2e-6).sum(1), atol=1e-5)
        assert np.allclose(Splines(jnp.zeros((2, 14)))(x), x)


@pytest.mark.slow
def test_a_flow_has_a_density_and_moments():
    flow = Flow(bins=4, layers=2)
    rng = np.random.default_rng(1)
    numbers = flow.first(2) + 0.4 * rng.normal(size=len(flow.first(2)))
    line = np.linspace(-12, 12, 400)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)
    p = np.exp(np.asarray(jax.jit(flow.distribution(numbers, 2).log_prob)(grid))) * (line[1] - line[0]) ** 2
    assert abs(p.sum() - 1) < 0.01
    mean = np.einsum("ij,ijd->d", p, grid)
    spread = np.einsum("ij,ijd,ije->de", p, grid - mean, grid - mean)
    assert np.abs(flow.location(numbers, 2) - mean).max() < 0.2 * np.sqrt(np.diag(spread)).max()
    assert np.allclose(np.linalg.inv(flow.precision(numbers, 2)), spread, rtol=0.3, atol=0.3 * spread.max())
    exact = flow.numbers(jnp.ones(2), jnp.array([[2.0, 0.5], [0.5, 1.0]]))
    normal = dist.MultivariateNormal(jnp.ones(2), precision_matrix=jnp.array([[2.0, 0.5], [0.5, 1.0]]))
    at = jnp.array([0.3, 0.7])
    assert float(flow.distribution(exact, 2).log_prob(at)) == pytest.approx(float(normal.log_prob(at)), abs=1e-4)
    assert len(exact) == len(flow.first(2))


def best_normal(y):
    """The bound of the best normal law of each particle, in closed form, from a grid of means and widths."""
    m, w = np.meshgrid(np.linspace(0, 2.5, 126), np.geomspace(0.1, 2, 100), indexing="ij")
    miss = y[:, None, None] ** 2 - 2 * y[:, None, None] * (m**2 + w**2) + m**4 + 6 * m**2 * w**2 + 3 * w**4
    log_p = -0.5 * (m**2 + w**2) - 0.5 * miss / WIDTH**2 - np.log(2 * np.pi * WIDTH)
    return (log_p + np.log(w) + 0.5 * np.log(2 * np.pi * np.e)).max((1, 2))


@pytest.mark.slow
def test_a_flow_holds_both_modes():
    """The bound of a normal law falls short by about log 2, the mode that it misses; that of a flow hardly."""
    problem = task(folded, imaged(np.linspace(14, 26, 25)))
    y = np.abs(np.asarray(problem.whole().images[:, 0].real, np.float64))
    log_evidence, variance = quadrature(y)
    engine = SVI(
        local=Table(Flow(), rate=0.05), batch_size=None, iterations=250, samples=8, annealing=Annealing(1.0, 1.0)
    )
    result = run(engine, problem, key=jax.random.key(0))
    missing = log_evidence.mean() - np.mean([row["objective"] for row in result.trace[-50:]])
    assert (log_evidence - best_normal(y)).mean() > 0.5
    assert -0.02 < missing < 0.15
    centre, precision = engine.proposal(problem, result.state)(problem.whole())
    assert np.median(np.abs(centre)) < 0.3
    assert np.median(np.abs(1 / np.asarray(precision)[:, 0, 0] / variance - 1)) < 0.2


@pytest.mark.slow
def test_an_encoder_gives_flows():
    problem = task(folded, imaged(np.linspace(14, 26, 1200)))
    problem = dataclasses.replace(problem, particles=problem.particles.with_holdout(0.2))
    engine = SVI(local=Encoder(hidden=64, law=Flow()), batch_size=80, iterations=80, samples=4)
    result = run(engine, problem, key=jax.random.key(0))
    rows = np.flatnonzero(problem.particles.held_out)
    batch = problem.batch(rows)
    y = np.abs(np.asarray(batch.images[:, 0].real, np.float64))
    log_evidence, variance = quadrature(y)
    _, precision = engine.proposal(problem, result.state)(batch)
    wide = np.median(1 / np.asarray(precision)[variance > 1, 0, 0])
    assert wide > 0.5 * np.median(variance[variance > 1])  # a normal law would hold one mode, of a tenth of that
    ratios = engine._machine(problem)[0].log_ratios(result.state.best, None, batch, jax.random.key(1), 200)
    assert (log_evidence - np.asarray(ratios.mean(0))).mean() < 0.5 * (log_evidence - best_normal(y)).mean()


@pytest.mark.parametrize("wrong", [lambda: Flow(bins=1), lambda: Flow(layers=0)])
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must|at least"):
        wrong()
