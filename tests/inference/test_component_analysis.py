"""T11: components of EM are as good as theory says, and at its fixed point nothing is left to gain."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import problem, simulated
from test_em import FIXED, Double
from test_subspace_laws import begun

from hetmodels.families import Subspace
from hetmodels.imaging.ball import Ball
from hetmodels.local import collapsed_ratio, component_lattice, image_design
from inference import EM
from inference.engine import run
from inference.subspace_start import leading_components

DIMS = 2


class Drawn:
    """A problem whose images are drawn from given shared values, the same in every pass."""

    def __init__(self, inner, shared, key, n):
        self.inner, made = inner, inner.simulate(key, shared, inner.batch(np.arange(n)))
        self.images, self.z = np.asarray(made[0].images), np.asarray(made[1])

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def batches(self, *args):
        for batch in self.inner.batches(*args):
            yield dataclasses.replace(batch, images=jnp.asarray(self.images)[batch.index])


@pytest.mark.slow
def test_the_fixed_point_has_no_gradient():
    """General views: the gradient of the log posterior with respect to the maps, against that of the data alone."""
    _, task = begun()
    with jax.enable_x64(True):
        task = dataclasses.replace(task, start={n: jnp.asarray(np.asarray(v, float)) for n, v in task.start.items()})
        double = Double(task)
        state = run(EM(iterations=1500, solver_steps=6, **FIXED), double, key=jax.random.key(0)).state
        family, obs, ball = task.family, task.observation, Ball(16)
        batch = next(iter(double.batches(0, jax.random.key(0), 150)))

        def parts(maps):
            now = dict(state.shared) | {"map": maps[0], "components": maps[1:]}
            data = (batch.weight * collapsed_ratio(family, now, batch, obs, state.noise, None)).sum()
            return data, ball.log_prior(maps, state.spectra).sum()

        data, prior = (jax.grad(lambda maps, i=i: parts(maps)[i])(state.maps[0]) for i in range(2))
        inside = [ball.filter(g, jnp.ones(ball.shells)) for g in (data + prior, data)]
    assert np.linalg.norm(inside[0]) < 1e-6 * np.linalg.norm(inside[1]) * np.sqrt(task.size)


def predicted_cosine(shared, task, strength):
    """cos^2 = sum tau^2 x/(1 + x) / sum tau^2 with x = n rho tau^2 <C^2>/(2 k sigma^2) and rho = s/(1 + s)."""
    disc, ball = task.observation.disc, Ball(task.particles.size)
    batch = task.whole()
    variance = np.asarray(task.observation.pixel_variance(shared["noise"], batch.group))
    seen = np.asarray(batch.ctf) ** 2 / variance
    per_shell = np.bincount(disc.shell, seen.mean(0), disc.shells) / np.maximum(np.bincount(disc.shell), 1)
    k = np.maximum(np.arange(disc.shells), 1)
    tau2 = np.asarray(shared["components_tau2"], float)
    x = task.size * (strength / (1 + strength))[:, None] * tau2 * per_shell / (2 * k)
    weight = ball.degrees * tau2
    return np.sqrt((weight * x / (1 + x)).sum(1) / weight.sum(1))


def strengths(shared, task):
    """s_j: mean over images of |C P V_j|^2/(sigma^2/2), the signal of a component in one image."""
    batch, lattice = task.whole(), component_lattice(task.family)
    slices = lattice.gather(
        lattice.table(shared["components"]),
        lattice.cells(batch.rotation, task.observation.disc.grid(task.observation.spacing).points, batch.stretch),
    )
    variance = task.observation.pixel_variance(shared["noise"], batch.group)
    power = 2 * jnp.abs(batch.ctf[..., None] * slices) ** 2 / variance[..., None]
    return np.asarray(power.sum(1).mean(0))


def with_components(task, wanted, seed=0):
    """Shared values whose components are drawn from spectra like the map's, of given strengths per image."""
    shared, ball = dict(task.starting(jax.random.key(0))), Ball(task.particles.size)
    tau2 = jnp.tile(shared["map_tau2"], (DIMS, 1))
    white = jax.random.normal(jax.random.key(seed), (DIMS, ball.coordinates))
    shared |= {"components": ball.colour(white, tau2), "components_tau2": tau2}
    scale = jnp.asarray(np.sqrt(np.array(wanted) / strengths(shared, task)), jnp.float32)
    shared["components"] = shared["components"] * scale[:, None, None, None]
    return shared | {"components_tau2": tau2 * scale[:, None] ** 2}


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [(8.0, 4.0), (2.0, 1.0)])
def test_components_are_as_good_as_theory_says(wanted):
    made = simulated(n=3000, size=16, snr=0.2, seed=4)
    task = problem(made.particles.with_holdout(0.0), Subspace(dims=DIMS))
    shared = with_components(task, wanted)
    drawn = Drawn(task, shared, jax.random.key(5), 3000)
    state = run(EM(iterations=60), drawn, key=jax.random.key(0)).state
    true, found = (np.asarray(c, float).reshape(DIMS, -1) for c in (shared["components"], state.maps[0, 1:]))
    basis = np.linalg.qr(found.T)[0]
    cosine = np.linalg.norm(true @ basis, axis=1) / np.linalg.norm(true, axis=1)
    np.testing.assert_allclose(cosine, predicted_cosine(shared, task, np.array(wanted)), atol=0.05)


@pytest.mark.slow
def test_too_few_images_tell_no_component():
    """n far below p/s^2: the leading direction is at chance level, whatever the truth is."""
    task = problem(simulated(n=300, size=16, snr=0.2, seed=4).particles.with_holdout(0.0), Subspace(dims=DIMS))
    shared = with_components(task, (0.3, 0.15))
    drawn = Drawn(task, shared, jax.random.key(5), 300)
    found = np.asarray(leading_components(drawn, shared["map"], shared["noise"], 1, 300), float).reshape(1, -1)
    true = np.asarray(shared["components"][0], float).ravel()
    assert np.abs(found @ true) < 0.25 * np.linalg.norm(found) * np.linalg.norm(true)
    design, _ = image_design(task.family, shared, task.whole(), task.observation, shared["noise"])
    assert np.asarray(design.covariance)[:, 0, 0].mean() > 0.6  # with the truth known the images do say something
