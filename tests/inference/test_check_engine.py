"""Every engine finds a posterior known in closed form, and a killed run goes on as if nothing had happened."""

import jax
import pytest
from numpyro.infer.autoguide import AutoMultivariateNormal
from plain import SCHOOLS, eight_schools

from hetmodels.plain import PlainProblem
from inference.em import EM
from inference.engine import run
from inference.guides import Point
from inference.map import MAP
from inference.mcmc import MCMC
from inference.moments import Moments
from inference.svi import SVI
from inference.testing import check_engine, check_resume, map_posterior

GOOD = [
    EM(iterations=25, learn_spectrum=False, learn_noise=False, tolerance=-1.0, batch_size=30, solver_steps=8),
    Moments(batch_size=20),
    MAP(),
    MAP(learning_rate=0.1),
    SVI(guide=Point(), iterations=800),
    pytest.param(
        SVI(guide=AutoMultivariateNormal, iterations=1500, learning_rate=0.05, draws=1000), marks=pytest.mark.slow
    ),
    SVI(iterations=1500, learning_rate=0.05, draws=1000),
    MCMC(draws=500, warmup=300, chains=2),
]


@pytest.mark.parametrize("engine", GOOD, ids=repr)
def test_engines_obey_their_laws(engine):
    check_engine(engine, jax.random.key(0))


class Shy(MAP):
    """A mode drawn towards zero."""

    def draw(self, key, problem, state):
        return {name: 0.9 * value for name, value in super().draw(key, problem, state).items()}


class Hidden(SVI):
    """Its steps depend on something that is not in its state."""

    calls: list[int] = []

    def step(self, key, problem, state, batch):
        self.calls.append(1)
        return super().step(jax.random.key(len(self.calls)), problem, state, batch)


def test_a_biased_engine_is_caught():
    with pytest.raises(AssertionError, match="posterior standard deviations from its mean"):
        check_engine(Shy(), jax.random.key(0))


def test_an_engine_with_a_hidden_state_is_caught():
    with pytest.raises(AssertionError, match="differs from that of an uninterrupted one"):
        check_engine(Hidden(iterations=800, learning_rate=0.05, draws=1000), jax.random.key(0))


@pytest.fixture(scope="module")
def images():
    return map_posterior(jax.random.key(1))[0]


@pytest.mark.parametrize(
    "engine",
    [MAP(batch_size=20, iterations=30), SVI(batch_size=20, iterations=10, draws=3), EM(iterations=3, batch_size=20)],
    ids=repr,
)
def test_a_run_killed_inside_a_pass_goes_on(images, engine):
    result = run(engine, images, key=jax.random.key(2))
    check_resume(engine, images, jax.random.key(2), result, steps=4)


def test_chains_killed_while_sampling_go_on():
    engine = MCMC(draws=45, warmup=30, chains=2, block=20)
    problem = PlainProblem(eight_schools, SCHOOLS)
    result = run(engine, problem, key=jax.random.key(0))
    assert result.draws["theta"].shape == (2, 45, 8)
    assert result.stats["energy"].shape == (2, 45)
    for steps in (1, 3):
        check_resume(engine, problem, jax.random.key(0), result, steps)
