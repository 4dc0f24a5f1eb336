"""Chains on mini-batches: known posteriors, resume, what is refused."""

import jax
import numpy as np
import pytest
from plain import imaged, own_gaps, task

from hetmodels.errors import DataError, UsageError
from inference.engine import run
from inference.sgmcmc import SGHMC, SGLD, SGMCMC
from inference.testing import check_resume, map_posterior, regression


@pytest.mark.parametrize("dynamics", [SGLD(), SGHMC()], ids=repr)
def test_a_normal_posterior_is_found(dynamics):
    """The bias of the spread is of the order of the step size, 0.05."""
    problem, mean, sd = regression(jax.random.key(0))
    engine = SGMCMC(dynamics=dynamics, draws=200, warmup=100, thinning=5)
    result = run(engine, problem, key=jax.random.key(1))
    draws = result.draws["x"]
    assert draws.shape == (4, 200, 3)
    assert np.all(np.abs(draws.mean((0, 1)) - mean) < 0.25 * sd)
    assert np.all(np.abs(draws.std((0, 1)) / sd - 1) < 0.2)
    check_resume(engine, problem, jax.random.key(1), result, steps=150)


@pytest.mark.slow
@pytest.mark.parametrize("dynamics", [SGLD(), SGHMC()], ids=repr)
def test_a_map_is_drawn_from_a_third_of_the_images_per_step(dynamics):
    problem, mean, sd = map_posterior(jax.random.key(0))
    engine = SGMCMC(dynamics=dynamics, draws=300, warmup=300, batch_size=20)
    draws = run(engine, problem, key=jax.random.key(1)).draws["map"]
    flat = draws.reshape(-1, *draws.shape[2:])
    assert flat.shape[0] == 1200
    assert np.sqrt(np.mean(((flat.mean(0) - mean) / sd) ** 2)) < 0.1
    assert abs(np.mean(flat.std(0) / sd) - 1) < 0.05


@pytest.mark.slow
def test_control_variates_cancel_the_noise_of_batches_at_the_mode():
    problem, _, _ = map_posterior(jax.random.key(0))
    engine = SGMCMC(draws=2, warmup=0, chains=1, batch_size=20, thinning=1)
    state = engine.init(jax.random.key(0), problem)
    gradient = engine._compiled(problem)[0]
    from inference.sites import split_arrays

    batches = list(problem.batches(0, jax.random.key(0), 20, False))
    slopes = np.stack([gradient(state.mode, split_arrays(b)[0])["map_white"] for b in batches])
    np.testing.assert_allclose(slopes.mean(0), state.slope["map_white"], atol=1e-3 * np.abs(slopes).max())
    assert np.abs(slopes.mean(0)).max() < 0.05 * np.abs(slopes).max()  # a mode, though each batch pulls
    state, _ = engine.step(jax.random.key(1), problem, state, batches[0])
    assert int(state.filled) == 1


def test_what_it_cannot_do_is_refused_in_words():
    problem = task(own_gaps, imaged(np.full(6, 20.0)))
    with pytest.raises(UsageError, match="sgmcmc does not integrate over the latents of each particle"):
        run(SGMCMC(), problem, key=jax.random.key(0))
    with pytest.raises(ValueError, match="between 0 and 1"):
        SGMCMC(step_size=2.0)
    stiff, _, _ = regression(jax.random.key(0))
    engine = SGMCMC(dynamics=SGHMC(steps=400, friction=0.0), step_size=0.9, draws=5, warmup=0, thinning=1)
    with pytest.raises(DataError, match="lower step_size"):
        run(engine, stiff, key=jax.random.key(0))
