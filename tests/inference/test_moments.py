"""First moments: the stencil is the normal matrix, one pass is enough, spectra are found."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import problem, simulated

from hetmodels.errors import UsageError
from hetmodels.families.classes import Classes
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.imaging import accumulate
from hetmodels.imaging.ball import Ball
from hetmodels.local import component_lattice
from hetmodels.observation import Outliers
from inference import moments
from inference.engine import run
from inference.moments import Moments


@pytest.fixture(scope="module")
def data():
    return simulated(n=400, size=16, snr=0.5)


@pytest.fixture(scope="module")
def task(data):
    return problem(data.particles, Homogeneous())


@pytest.fixture(scope="module")
def state(task):
    engine, state = Moments(), Moments().init(jax.random.key(0), task)
    for batch in task.batches(0, jax.random.key(0), 200):
        state, _ = engine.step(jax.random.key(0), task, state, batch)
    return state


def test_the_stencil_is_the_normal_matrix(task, state):
    """P* D P of a random table, against slicing and the exact adjoint."""
    lattice, obs = component_lattice(task.family), task.observation
    x = jax.random.normal(jax.random.key(1), (lattice.rows, 2))
    batch = task.whole()
    cells = lattice.cells(batch.rotation, obs.disc.grid(obs.spacing).points, batch.stretch)
    weight = 2 * batch.ctf**2 / obs.pixel_variance(state.noise, batch.group)
    slices = weight * lattice.gather(x, cells)[..., 0]
    values = jnp.stack([slices.real, slices.imag * cells.sign], axis=-1)
    expected = np.asarray(accumulate.add(lattice, accumulate.empty(lattice, 1, 2), cells, values)).reshape(-1, 2)
    found = moments._apply(lattice, accumulate.table(state.normal, 14), x)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_batches_do_not_matter(task):
    one, other = (run(Moments(batch_size=b), task, key=jax.random.key(0)) for b in (400, 70))
    scale = np.abs(one.state.map).max()
    assert np.abs(one.state.map - other.state.map).max() < 1e-3 * scale
    assert len(one.trace) == 1
    assert np.isclose(one.trace[0]["objective"], other.trace[0]["objective"], rtol=1e-4)


def test_the_objective_is_the_log_density(task):
    """log p(y | X) - log p(y | reference noise) + log p(X), per particle."""
    engine = Moments(learn_spectrum=False)
    result = run(engine, task, key=jax.random.key(0))
    shared = engine.draw(jax.random.key(0), task, result.state)
    from hetmodels.local import collapsed_ratio

    batch, obs = task.whole(), task.observation
    ratio = collapsed_ratio(task.family, shared, batch, obs, shared["noise"], None)
    ratio = ratio + obs.zero_ratio(batch.images, obs.pixel_variance(shared["noise"], batch.group))
    total = float(ratio.sum()) + float(Ball(16).log_prior(shared["map"], shared["map_tau2"]))
    assert np.isclose(result.trace[0]["objective"], total / task.size, rtol=1e-4)


def test_the_spectrum_is_found(data, task):
    ball = Ball(16)
    truth = np.asarray(ball.power(jnp.asarray(data.truth[0])))
    found = np.asarray(run(Moments(), task, key=jax.random.key(0)).state.tau2)
    strong = slice(1, 5)
    spread = np.sqrt(2 / ball.degrees[strong])
    assert np.all(np.abs(np.log(found[strong] / truth[strong])) < 3 * spread + 0.1)
    fixed = dataclasses.replace(task, given={"map_tau2": jnp.asarray(truth).at[0].set(truth[1])})
    assert np.allclose(run(Moments(), fixed, key=jax.random.key(0)).state.tau2[1:], truth[1:])


def test_what_it_cannot_do_is_refused_in_words(data):
    assert "no discrete states" in Moments.lacks(Classes)
    assert "protocol Linear" in Moments.lacks(lambda data: None)
    assert "family.order=1" in Moments.lacks(Homogeneous(order=3))
    with pytest.raises(UsageError, match="no junk component"):
        run(Moments(), problem(data.particles, Homogeneous(), outliers=Outliers()), key=jax.random.key(0))
    with pytest.raises(UsageError, match="half sets"):
        run(Moments(), problem(data.particles, Homogeneous(), halves=True), key=jax.random.key(0))
    with pytest.raises(ValueError, match="at least 1"):
        Moments(batch_size=0)
