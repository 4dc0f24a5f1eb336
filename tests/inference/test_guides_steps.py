"""Steps of each particle's q by itself: exact where the posterior is normal, the best normal law where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import imaged, task
from test_guides import evidence, measured

from inference.encoder import Encoder
from inference.guides import LowRank, MeanField, Point
from inference.importance import importance_bound
from inference.natural import NaturalSteps
from inference.svi import SVI


def test_one_step_ends_at_a_normal_posterior_wherever_it_starts():
    rng = np.random.default_rng(0)
    mean = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    root = rng.normal(size=(5, 3, 3))
    precision = jnp.asarray(root @ np.swapaxes(root, 1, 2) + 2 * np.eye(3), jnp.float32)

    def log_joint(u):
        return -0.5 * jnp.einsum("ni,nij,nj->n", u - mean, precision, u - mean)

    found = NaturalSteps(1)(log_joint, mean + 0.5, jnp.broadcast_to(4 * jnp.eye(3), (5, 3, 3)))
    assert np.allclose(found[0], mean, atol=1e-4)
    assert np.allclose(found[1], precision, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("start", [0.0, 6.0])
def test_steps_end_at_the_best_normal_law_of_a_skewed_density(start):
    """log p = 3 u - exp(u): E grad = 3 - exp(m + v/2) = 0 and E hess = -exp(m + v/2), so v = 1/3, m = log 3 - 1/6."""

    def log_joint(u):
        return (3 * u - jnp.exp(u))[:, 0]

    mean, precision = NaturalSteps(20)(log_joint, jnp.full((1, 1), start), jnp.ones((1, 1, 1)))
    assert abs(float(mean[0, 0]) - (np.log(3) - 1 / 6)) < 0.01
    assert abs(float(precision[0, 0, 0]) - 3) < 0.05


def test_a_step_never_lowers_the_bound():
    """Two modes and a start between them, where the curvature has the wrong sign: nothing breaks, the bound rises."""

    def log_joint(u):
        return -jnp.sum((u**2 - 4) ** 2, axis=1)

    def bound(mean, precision):
        draws = mean + jax.random.normal(jax.random.key(0), (20000, 1)) / jnp.sqrt(precision[0])
        return float(log_joint(draws).mean() - 0.5 * jnp.log(precision[0, 0, 0]))

    begin = jnp.full((1, 1), 0.1), jnp.full((1, 1, 1), 4.0)
    values = [bound(*begin)] + [bound(*NaturalSteps(n)(log_joint, *begin)) for n in (4, 16)]
    assert values[0] + 1 < values[1] <= values[2] + 0.05
    assert np.isfinite(values).all()


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        NaturalSteps(0)


@pytest.mark.parametrize("law", [MeanField(), LowRank(), LowRank(1)], ids=repr)
def test_a_law_takes_the_numbers_of_a_normal_law(law):
    rng = np.random.default_rng(1)
    root = rng.normal(size=(4, 2, 2))
    location, precision = jnp.asarray(rng.normal(size=(4, 2))), jnp.asarray(root @ np.swapaxes(root, 1, 2) + np.eye(2))
    numbers = law.numbers(location, precision)
    assert numbers.shape == (4, len(law.first(2)))
    assert np.allclose(law.location(numbers, 2), location)
    found = law.precision(numbers, 2)
    if isinstance(law, LowRank):
        found, wanted = np.linalg.inv(found), np.linalg.inv(precision)
        columns = slice(None) if law.rank is None else np.arange(2)  # fewer columns than axes keep the variances
        rows = slice(None) if law.rank is None else np.arange(2)
        assert np.allclose(found[:, rows, columns], wanted[:, rows, columns], rtol=0.02, atol=1e-3)
    else:
        assert np.allclose(found, np.einsum("nii,ij->nij", precision, np.eye(2)), rtol=1e-4)
    assert np.allclose(Point().numbers(location, precision), location)


@pytest.fixture(scope="module")
def normal():
    """An encoder that is told the score, of a model where all is normal, as it starts: nothing is trained."""
    problem = task(measured, imaged(np.linspace(14, 26, 25)))
    engine = SVI(local=Encoder(hidden=4, layers=1, law=LowRank(), score=NaturalSteps(1)), batch_size=None, finish=None)
    state = engine.init(jax.random.key(0), problem)
    params = {k: jnp.zeros_like(v) if k == "encoder_output" else v for k, v in state.params.items()}
    return problem, engine._machine(problem)[0], params


def test_an_encoder_that_is_told_the_score_knows_a_normal_posterior(normal):
    """Untrained, its bound is the evidence, for every draw: exact where the density of an image is normal."""
    problem, machine, params = normal
    log_evidence, mean, covariance = evidence(problem)
    centre, precision = machine.proposal(params, None)(problem.whole())
    assert np.abs(np.asarray(centre) - mean).max() < 1e-3
    assert np.allclose(np.linalg.inv(precision), covariance, atol=2e-3)
    value = float(machine._score(problem.whole(), params, jax.random.key(1)))
    assert abs(value - log_evidence) < 2e-3


def test_the_steps_in_the_end_leave_nothing_of_a_bad_encoder(normal):
    """q of a mean-field encoder that says the same of all particles, then two steps each."""
    problem, _, _ = normal
    _, mean, covariance = evidence(problem)
    engine = SVI(local=Encoder(hidden=4, layers=1), batch_size=None, finish=NaturalSteps(3))
    state = engine.init(jax.random.key(0), problem)
    centre, precision = engine.proposal(problem, state)(problem.whole())
    assert np.abs(np.asarray(centre) - mean).max() < 1e-2
    assert np.allclose(np.linalg.inv(precision), covariance, atol=1e-2)


def test_the_bound_by_more_draws_rises_to_the_evidence(normal):
    """The best mean-field law of a correlated posterior, its loss known in closed form."""
    problem, machine, params = normal
    log_evidence, mean, covariance = evidence(problem)
    wide = np.diag(1.0 / np.diag(np.linalg.inv(covariance)))
    numbers = machine.law.numbers(jnp.asarray(mean), jnp.broadcast_to(np.linalg.inv(wide), (25, 2, 2)))
    look = jax.jit(machine.log_ratios, static_argnames="draws")
    ratios = look(params, numbers.astype(jnp.float32), problem.whole(), jax.random.key(0), draws=2048)
    bounds = [float(importance_bound(ratios, n).mean()) for n in (1, 4, 32, 512)]
    lost = -0.5 * np.log(1 - covariance[0, 1] ** 2 / covariance.diagonal().prod())
    assert lost > 0.05
    assert abs(bounds[0] - (log_evidence - lost)) < 0.02
    assert bounds[0] < bounds[1] < bounds[2] < bounds[3] + 1e-3
    assert abs(bounds[3] - log_evidence) < 0.1 * lost
    with pytest.raises(ValueError, match="must lie between"):
        importance_bound(ratios, 2049)
