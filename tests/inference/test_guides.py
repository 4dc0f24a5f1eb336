"""Guides: the bound, its gradient, lazy steps, amortization; each against a closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from plain import dumbbell, imaged, task

from hetmodels.data.particles import Particles
from hetmodels.data.phantom import phantom
from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.grids import Disc
from hetmodels.imaging.rotations import uniform
from hetmodels.model import Observed
from hetmodels.tree import pytree
from inference.amortization import amortization_gap
from inference.elbo import Annealing
from inference.encoder import Encoder, circle, features, views
from inference.engine import run
from inference.guides import Latents, LowRank, MeanField, Point, Table, TableState
from inference.svi import SVI

SD = 0.5


def measured(data):
    """Two correlated latents per particle, seen in four pixels of its image: everything is normal."""
    numpyro.param("gain", 1.0)
    with data.plate():
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        seen = z @ jnp.array([[1.0, 0.6, 0.2, 0.0], [0.9, -0.1, 0.3, 0.4]])
        numpyro.sample("y", dist.Normal(seen, SD).to_event(1), obs=data.batch.images[:, :4].real)


@pytest.fixture(scope="module")
def particles():
    return imaged(np.linspace(14, 26, 25))


def evidence(problem):
    """Mean log evidence of the model above, and posterior means and covariance."""
    y = np.asarray(problem.whole().images[:, :4].real, np.float64)
    loading = np.array([[1.0, 0.6, 0.2, 0.0], [0.9, -0.1, 0.3, 0.4]])
    total = loading.T @ loading + SD**2 * np.eye(4)
    each = -0.5 * np.einsum("ni,ij,nj->n", y, np.linalg.inv(total), y) - 0.5 * np.linalg.slogdet(2 * np.pi * total)[1]
    covariance = np.linalg.inv(np.eye(2) + loading @ loading.T / SD**2)
    return each.mean(), y @ loading.T @ covariance / SD**2, covariance


@pytest.mark.parametrize("law", [LowRank(), MeanField()], ids=["full", "mean field"])
def test_the_bound_is_below_the_evidence_and_reaches_it_where_the_guide_can(particles, law):
    problem = task(measured, particles)
    log_evidence, mean, covariance = evidence(problem)
    engine = SVI(local=Table(law, rate=0.05), batch_size=None, iterations=1000, samples=2)
    result = run(engine, problem, key=jax.random.key(0))
    bound = np.mean([row["objective"] for row in result.trace[-200:]])
    # normals of independent coordinates fall short by the correlation they cannot have, in closed form
    missing = (
        0.0 if isinstance(law, LowRank) else -0.5 * np.log(1 - covariance[0, 1] ** 2 / covariance.diagonal().prod())
    )
    assert abs(bound - (log_evidence - missing)) < 0.03
    assert bound < log_evidence + 0.02
    centre, precision = engine.proposal(problem, result.state)(problem.whole())
    assert np.abs(np.asarray(centre) - mean).max() < 0.1
    width = np.asarray(np.linalg.inv(precision))[0] if missing == 0 else np.diag(1 / np.diagonal(precision[0]))
    wanted = covariance if missing == 0 else np.diag(1 / np.diag(np.linalg.inv(covariance)))
    assert np.abs((width - wanted) / np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))).max() < 0.25


def test_the_gradient_of_the_bound_is_the_finite_difference(particles):
    problem = task(measured, particles)
    with jax.enable_x64(True):
        engine = SVI(local=Encoder(hidden=4, layers=1), batch_size=None)
        state = engine.init(jax.random.key(0), problem)
        machine = engine._machine(problem)[0]
        batch = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64) if leaf.dtype == jnp.float32 else leaf, problem.whole()
        )
        params = {name: jnp.asarray(value, jnp.float64) for name, value in state.params.items()}

        @jax.jit
        def value(params):
            return sum(machine.bound(params, None, batch, jax.random.key(1)))

        rng = np.random.default_rng(0)
        step = {name: jnp.asarray(rng.normal(size=v.shape)) for name, v in params.items()}
        gradient = jax.grad(value)(params)
        slope = sum(jnp.vdot(gradient[name], step[name]) for name in params)
        up, down = ({name: params[name] + h * step[name] for name in params} for h in (1e-5, -1e-5))
        np.testing.assert_allclose(slope, (value(up) - value(down)) / 2e-5, rtol=1e-5)


def test_what_is_reported_is_the_bound_whatever_the_annealing(particles):
    """With q held fixed, beta must not enter the objective."""
    problem = task(measured, particles)
    found = []
    for annealing in (Annealing(), Annealing(start=0.0, end=0.0)):
        engine = SVI(
            local=Table(rate=1e-9), batch_size=None, iterations=2, annealing=annealing, optimiser=optax.sgd(0.0)
        )
        found.append(run(engine, problem, key=jax.random.key(0)).trace[-1]["objective"])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert float(Annealing(0.2, 1.0, 4.0).beta(jnp.asarray(2.0))) == pytest.approx(0.6)
    assert float(Annealing(0.2, 1.0, 0.0).beta(jnp.asarray(1.0))) == 1.0


def test_beta_weighs_the_latents(particles):
    """Without the prior's and the entropy's part, the likelihood alone is climbed and q shrinks to a point."""
    problem = task(measured, particles)
    engine = SVI(local=Table(MeanField(), rate=0.05), batch_size=None, iterations=400)
    widths = []
    for beta in (0.1, 1.0):
        state = run(dataclasses.replace(engine, annealing=Annealing(beta, beta)), problem, key=jax.random.key(0)).state
        widths.append(float(jnp.exp(state.table.value[:, 2:]).mean()))
    assert widths[0] < 0.6 * widths[1]


def test_lazy_steps_are_those_of_adam_for_the_rows_seen():
    rng = np.random.default_rng(0)
    table = TableState.begin(jax.random.key(0), MeanField(), 5, 2)
    dense, optimiser = table.value[2], optax.adam(0.1)
    state = optimiser.init(dense)
    for _ in range(4):
        gradient = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
        table = table.stepped(jnp.array([2, 4, 5]), gradient, jnp.asarray(0.1))  # 5 is padding
        move, state = optimiser.update(gradient[0], state)
        dense = optax.apply_updates(dense, move)
    assert np.allclose(table.value[2], dense, atol=1e-6)
    assert np.array_equal(table.count, [0, 0, 4, 0, 4])
    assert np.array_equal(table.value[0], TableState.begin(jax.random.key(0), MeanField(), 5, 2).value[0])


def test_a_step_on_a_table_costs_the_same_whatever_its_length():
    """Operations counted by the compiler, not seconds."""

    def cost(rows):
        table = TableState.begin(jax.random.key(0), MeanField(), rows, 4)
        step = jax.jit(TableState.stepped, donate_argnums=0)
        compiled = step.lower(table, jnp.arange(8), jnp.ones((8, 8)), jnp.asarray(0.1)).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

    small, large = cost(1_000), cost(100_000)
    assert large[0] <= 1.1 * small[0]
    assert large[1] <= 1.1 * small[1] + 1000


def test_constrained_latents_keep_their_density():
    """A latent on an interval and one on the line: the guide's density is that of u over the Jacobian."""
    sites = {
        "b": {"fn": dist.Uniform(2.0, 5.0)},
        "a": {"fn": dist.Normal(0, 1).expand([2]).to_event(1)},
    }
    latents = Latents.of(sites)
    assert latents.dims == 3
    assert latents.names == {"a", "b"}
    with jax.enable_x64(True):
        numbers = jnp.array([[0.1, -0.2, 0.3, -1.0, -0.5, -0.7]])
        law = MeanField().distribution(numbers, 3)

        def guide():
            with numpyro.plate("particles", 1):
                latents.sample(law)

        trace = numpyro.handlers.trace(numpyro.handlers.seed(guide, 0)).get_trace()
        u, b = trace["particle_latents"]["value"][0], trace["b"]["value"][0]
        total = sum(
            float(site["fn"].log_prob(site["value"]).sum()) for n, site in trace.items() if site["type"] == "sample"
        )
        share = (b - 2) / 3
        expected = float(law.log_prob(u[None])[0]) - float(jnp.log(3 * share * (1 - share)))
    assert 2 < b < 5
    assert np.allclose(trace["a"]["value"][0], u[:2])
    assert total == pytest.approx(expected)


@pytest.mark.parametrize("law", [Point(), MeanField(), LowRank(), LowRank(1)], ids=repr)
def test_laws_say_what_their_distribution_is(law):
    numbers = law.first(3) + 0.3 * jax.random.normal(jax.random.key(0), law.first(3).shape)
    found, precision = law.distribution(numbers, 3), law.precision(numbers, 3)
    assert found.event_shape == (3,)
    assert np.allclose(found.mean, numbers[:3])
    if precision is None:
        assert isinstance(law, Point)
        return
    covariance = np.diag(found.variance) if isinstance(law, MeanField) else found.covariance_matrix
    assert np.allclose(np.linalg.inv(precision), covariance, rtol=1e-3, atol=1e-5)


def test_the_encoder_sees_the_centred_image_through_its_ctf():
    """Moving the particle changes nothing; neither does the sign of its CTF; outside the circle nothing is seen."""
    from simulated import problem, simulated

    from hetmodels.families import Homogeneous

    data = simulated(n=6, size=16)
    seen = problem(data.particles, Homogeneous())
    batch, obs = seen.whole(), seen.observation
    look = lambda batch: np.asarray(features(Observed(batch, obs, None, None), 0.4))  # noqa: E731
    found = look(batch)
    assert found.shape == (len(batch.weight), len(circle(16, 0.4)))
    assert 0.5 < found.std() < 1.6
    points = obs.disc.grid(obs.spacing).points
    shift = jnp.array([7.0, -3.0])
    moved = dataclasses.replace(
        batch, shift=batch.shift + shift, images=batch.images * jnp.exp(-2j * jnp.pi * points @ shift)
    )
    assert np.allclose(look(moved), found, atol=1e-4)
    assert np.allclose(look(dataclasses.replace(batch, images=-batch.images, ctf=-batch.ctf)), found, atol=1e-5)
    assert np.allclose(look(dataclasses.replace(batch, ctf=3 * batch.ctf)), found, atol=1e-4)


def test_images_of_one_view_are_turned_alike():
    """The same particle seen after a turn in the plane, imaged anew: the encoder sees the same, to interpolation."""
    turns = uniform(jax.random.key(3), 5)
    angle = jnp.deg2rad(67.0)
    plane = jnp.array([[jnp.cos(angle), -jnp.sin(angle), 0], [jnp.sin(angle), jnp.cos(angle), 0], [0, 0, 1]])
    disc = Disc(24)
    project = jax.jit(jax.vmap(lambda turn: phantom(1, 24, 8.0)[0].project(turn, disc.grid(8.0))))
    seen = []
    for rotation in (turns, plane @ turns):
        images = np.asarray(disc.inverse(project(rotation)))
        particles = Particles.from_arrays(images, np.asarray(rotation), np.zeros((5, 2)), Ctf.ideal(5), 8.0)
        problem = task(measured, particles.with_holdout(0.0))
        data = Observed(problem.whole(), problem.observation, None, None)
        seen.append((np.asarray(features(data, 0.4)), np.asarray(views(data))))
    assert np.allclose(seen[0][1], seen[1][1], atol=1e-5)
    for a, b in zip(seen[0][0], seen[1][0], strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.95


@pytree
class Swinging:
    """A family of dumbbells, the gap their latent."""

    def shared(self):
        return {}

    def conformation(self, shared):
        return dist.Normal(0.0, 1.0).expand([1]).to_event(1)

    def volume(self, shared, z):
        return dumbbell(20 + 3 * z[0])


@pytest.mark.slow
def test_latents_of_a_fit_come_from_infer_with_the_guide_as_proposal():
    """A table's rows for the particles that train, Laplace's approximation for the others: the same integral."""
    from hetmodels.observation import FixedNoise
    from inference import fit

    gaps = 20 + 3 * np.random.default_rng(0).normal(size=60)
    particles = imaged(gaps, noise=0.15)
    level = FixedNoise(tuple(map(tuple, (0.15**2 / particles.reference).tolist())))
    engine = SVI(local=Table(LowRank(), rate=0.05), iterations=100, batch_size=30, proposals=200)
    posterior = fit(Swinging(), particles, engine, key=jax.random.key(0), noise=level, holdout=0.2)
    exact = fit(
        Swinging(), particles, dataclasses.replace(engine, local=Table(Point())), key=jax.random.key(0), noise=level,
        holdout=0.2,
    )  # fmt: skip
    mean, truth = posterior.local["mean"][:, 0], (gaps - 20) / 3
    assert np.corrcoef(mean, truth)[0, 1] > 0.8
    sd = np.sqrt(exact.local["covariance"][:, 0, 0])
    assert np.abs((mean - exact.local["mean"][:, 0]) / sd).max() < 0.5
    se = np.hypot(posterior.local["log_evidence_se"], exact.local["log_evidence_se"])
    assert np.median(np.abs(posterior.local["log_evidence"] - exact.local["log_evidence"]) / se) < 2
    assert se.max() < 0.4


@pytest.mark.slow
def test_an_encoder_learns_what_the_table_knows_and_stops_in_time():
    gaps = 20 + 3 * np.random.default_rng(0).normal(size=600)
    particles = imaged(gaps, noise=0.1)
    problem = dataclasses.replace(task(Swinging(), particles, sd=0.1), particles=particles.with_holdout(0.2))
    engine = SVI(local=Encoder(hidden=32, layers=1), iterations=40, batch_size=60, patience=8)
    result = run(engine, problem, key=jax.random.key(0))
    held = [row["held_out"] for row in result.trace]
    assert held[-1] > held[0] + 5
    assert float(result.state.best_value) == pytest.approx(max(held[4:]), abs=1e-5)
    about = engine.proposal(problem, result.state)
    rows = np.flatnonzero(problem.particles.held_out)
    centre, _ = about(problem.batch(rows))
    assert np.corrcoef(np.asarray(centre)[:, 0], gaps[rows])[0, 1] > 0.7
    assert engine._machine(problem)[1]._cache_size() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Encoder(hidden=0),
        lambda: Encoder(radius=0.8),
        lambda: LowRank(0),
        lambda: Table(rate=0.0),
        lambda: Annealing(start=-1.0),
        lambda: SVI(proposals=0),
        lambda: SVI(network_rate=0.0),
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        wrong()


def test_the_amortization_gap_is_what_the_own_guides_gain():
    """An encoder that says the same of all particles, q = N(0, 0.1^2) of both latents: the gap in closed form."""
    particles = imaged(np.linspace(14, 26, 25))
    problem = task(measured, particles)
    engine = SVI(local=Encoder(hidden=4, layers=1), batch_size=None)
    state = engine.init(jax.random.key(0), problem)
    params = {k: jnp.zeros_like(v) if k == "encoder_output" else v for k, v in state.params.items()}
    gap = amortization_gap(engine._machine(problem)[0], params)
    assert gap.shape == (25,)
    _, mean, covariance = evidence(problem)
    precision, spread = np.linalg.inv(covariance), np.diag([0.01, 0.01])
    best = np.diag(1 / np.diag(precision))  # of the mean-field guide
    lost = 0.5 * np.einsum("ni,ij,nj->n", mean, precision, mean) + 0.5 * np.trace(precision @ (spread - best))
    lost -= 0.5 * np.log(np.linalg.det(spread) / np.linalg.det(best))
    assert np.median(np.abs(gap - lost) / lost) < 0.25
    assert np.corrcoef(gap, lost)[0, 1] > 0.95
