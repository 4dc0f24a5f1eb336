"""Chains whose poses come from the candidates of a search: the posterior of the map over them is exact."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.infer import NUTS
from scipy.special import ndtr
from simulated import problem, simulated, uneven

from hetmodels.arviz_bridge import ess
from hetmodels.families import Homogeneous
from hetmodels.model import Observed, render
from hetmodels.observation import FixedNoise, Known, Unknown
from inference import blackjax_kernels
from inference.engine import run
from inference.gibbs import LinearGibbs
from inference.mcmc import MCMC
from inference.pose_table import at_candidates, summed

pytestmark = pytest.mark.slow
POSE = Unknown(order=0, oversampling=0, shift_range=0.0, shift_step=1.0, poses=2, top=2, perturb=False)
IMAGES = 6


@pytest.fixture(scope="module")
def task():
    """A few images of 8 pixels, the spectrum of the map known, and the true map to search poses with."""
    data = simulated(n=IMAGES, size=8, pixel=24.0, snr=0.1, volumes=(uneven(8, 24.0),))
    made = problem(data.particles.with_holdout(0.0), Homogeneous(), pose=POSE.framed(24.0), noise=FixedNoise())
    tau2 = jnp.asarray(made.sites["map_tau2"]["value"])
    start = {"map": jnp.asarray(data.truth[0], jnp.float32), "map_tau2": tau2}
    return dataclasses.replace(made, given={"map_tau2": tau2}, start=start)


def mixture(task, poses):
    """The posterior of the map's coordinates given two poses per image: weights, means, covariances of 2^n normals."""
    flat, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, task.initial(jax.random.key(0))))
    shared, known = task.shared(unravel(flat)), dataclasses.replace(task.observation, pose=Known())
    batch, sides = task.whole(), []
    for k in range(2):
        placed = dataclasses.replace(batch, rotation=poses.rotation[:, k], shift=poses.shift[:, k])
        seen = Observed(placed, known, shared["noise"], None)
        images = lambda u, seen=seen: render(task.family.volume(task.shared(unravel(u)), None), seen, {})  # noqa: E731
        sides.append(np.asarray(jax.jit(jax.vmap(images))(jnp.eye(len(flat))), complex))
    scale = 2 / np.asarray(task.observation.pixel_variance(shared["noise"], batch.group), float)
    y = np.asarray(batch.images, complex)
    square = [np.einsum("ubm,bm,vbm->buv", a.conj(), scale, a).real for a in sides]
    cross = [np.einsum("ubm,bm,bm->bu", a.conj(), scale, y).real for a in sides]
    weights, means, covariances = [], [], []
    for pick in itertools.product(range(2), repeat=IMAGES):
        precision = np.eye(len(flat)) + sum(square[k][i] for i, k in enumerate(pick))
        linear = sum(cross[k][i] for i, k in enumerate(pick))
        mean, covariance = np.linalg.solve(precision, linear), np.linalg.inv(precision)
        prior = sum(float(poses.log_prior[i, k]) for i, k in enumerate(pick))
        weights.append(prior + linear @ mean / 2 - np.linalg.slogdet(precision)[1] / 2)
        means.append(mean)
        covariances.append(covariance)
    weights = np.exp(np.array(weights) - max(weights))
    return weights / weights.sum(), np.array(means), np.array(covariances), unravel


@pytest.mark.parametrize(
    ("kernel", "draws", "warmup", "search_every"),
    [(LinearGibbs(), 2000, 20, 1), (NUTS, 1000, 300, 3), (blackjax_kernels.NUTS(), 1000, 300, 3)],
    ids=["gibbs", "numpyro", "blackjax"],
)
def test_a_map_with_unknown_poses_has_its_exact_posterior(task, kernel, draws, warmup, search_every):
    """A linear functional of the map: mean, spread and distribution of the mixture of normals, every pose summed."""
    engine = MCMC(draws=draws, warmup=warmup, chains=2, block=100, kernel=kernel, search_every=search_every)
    task = summed(engine, task)
    result = run(engine, task, key=jax.random.key(0))
    weights, means, covariances, unravel = mixture(task, result.state.poses.support(task.training))
    first, second = np.argsort(weights)[-2:]
    assert weights[first] < 0.8  # else there is nothing to mix
    maps = np.asarray(jax.vmap(lambda u: task.shared(unravel(u))["map"])(jnp.eye(means.shape[1]))).reshape(
        means.shape[1], -1
    )
    along = maps @ ((means[first] - means[second]) @ maps)
    centre, sd = means @ along, np.sqrt(np.einsum("i,kij,j->k", along, covariances, along))
    mean = weights @ centre
    spread = np.sqrt(weights @ (sd**2 + (centre - mean) ** 2))
    found = result.draws["map"].reshape(2, draws, -1).astype(float) @ ((means[first] - means[second]) @ maps)
    count = float(ess({"f": found}, "mean")["f"])
    assert count > 300
    assert abs(found.mean() - mean) < 4 * spread / np.sqrt(count)
    for level in (0.05, 0.25, 0.5, 0.75, 0.95):
        at = np.quantile(found, level)
        share = weights @ ndtr((at - centre) / sd)
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / (count / 2))
    assert result.stats["diverging"].mean() < 0.01


def test_candidates_are_searched_in_the_warm_up_alone(task):
    """The density of a chain is that of the candidates of the last search, and these stay while draws are kept."""
    engine = MCMC(draws=2, warmup=2, chains=2, block=2, kernel=LinearGibbs())
    task = summed(engine, task)
    state = engine.init(jax.random.key(0), task)
    first = state.poses
    state, info = engine.step(jax.random.key(1), task, state, task.whole())
    assert {"discarded", "search_order"} <= set(info) and (state.poses.rotation != first.rotation).any()
    after, info = engine.step(jax.random.key(2), task, state, task.whole())
    assert after.poses is state.poses and "discarded" not in info
    batch = at_candidates(state.poses, task.whole())
    exact = jax.jit(jax.vmap(lambda x: task.log_density(x, batch)))(after.chains.x)
    np.testing.assert_allclose(after.stats["lp"][:, -1], exact, rtol=1e-5)
