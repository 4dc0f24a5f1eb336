"""The Gaussians of a latent under EM: evidence never falls, lumps are found, and held-out images prefer them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import simulated

from hetmodels.families import Subspace
from hetmodels.families.latent_mixture import LatentMixture, expected_log_density, first_mixture, most_likely
from hetmodels.local import design_moments
from hetmodels.scoring import latent_ratio
from inference import EM, fit
from inference.expectation import no_sums
from inference.mixture_step import _fitted, _looked, refitted

DIMS = 2
FAMILY = Subspace(dims=DIMS, mixture=2)


@pytest.fixture(scope="module")
def lumps():
    """What images say of latents from two lumps: statistics h and G, and the lumps."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        truth = jax.tree.map(np.asarray, jax.jit(LatentMixture.standardised)(
            LatentMixture(np.array([0.7, 0.3]), np.array([[-1.0, 0], [1.5, 0.5]]), 0.1 * np.stack([np.eye(DIMS)] * 2))
        ))  # fmt: skip
    node = (rng.uniform(size=300) < truth.weights[1]).astype(int)
    z = truth.means[node] + np.einsum(
        "nij,nj->ni", np.linalg.cholesky(truth.covariances)[node], rng.normal(size=(300, DIMS))
    )
    x = rng.normal(size=(300, 1 + DIMS, 20))
    y = x[:, 0] + np.einsum("nj,njp->np", z, x[:, 1:]) + rng.normal(size=(300, 20))
    statistics = np.einsum("np,nlp->nl", y, x), 0.5 * np.einsum("nlp,nmp->nlm", x, x)
    return truth, node, jax.jit(lambda mixture: _looked(FAMILY, mixture, *map(jnp.asarray, statistics))), statistics


def test_the_evidence_never_falls_and_passes_that_of_the_truth(lumps):
    truth, _, look, statistics = lumps
    mixture, values = jax.tree.map(np.float64, first_mixture(2, DIMS)), []
    for _ in range(40):
        total, moments, _ = look(mixture)
        values.append(float(total))
        mixture = most_likely(np.asarray(moments), mixture)
    assert (np.diff(values) >= -1e-5).all(), values
    best = _fitted(jax.random.key(0), FAMILY, *map(jnp.asarray, statistics)).sorted()
    assert float(look(best)[0]) >= max(values[-1] - 1e-3, float(look(truth)[0]))
    np.testing.assert_allclose(best.weights, truth.weights, atol=0.08)
    np.testing.assert_allclose(best.means, truth.means, atol=0.2)


def test_the_gauge_is_fixed_whoever_takes_over_the_moments(lumps):
    truth, _, look, _ = lumps
    problem = SimpleNamespace(family=FAMILY, given={})
    before = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), truth)
    shared, latent = FAMILY.with_mixture({}, before), np.asarray(look(truth)[1], np.float64)
    second, own = refitted(problem, shared, latent, True)
    np.testing.assert_allclose(second, latent.sum(0) / latent[:, 0, 0].sum(), atol=1e-6)
    mean, cover = LatentMixture(
        *(np.asarray(own[name], np.float64) for name in ("weights", "means", "covariances"))
    ).moments()
    np.testing.assert_allclose(mean, 0, atol=1e-5)
    np.testing.assert_allclose(cover, np.eye(DIMS), atol=1e-5)
    kept, own = refitted(problem, shared, latent, False)  # the maps stay: what is not better is not taken
    after = before if not own else FAMILY.latent_mixture(own)
    assert kept is None and expected_log_density(latent, after) >= expected_log_density(latent, before)
    assert refitted(SimpleNamespace(family=FAMILY, given={"means": 0}), shared, latent, True) == (None, {})
    plain = no_sums(1, 1, 1, DIMS).latent
    assert refitted(SimpleNamespace(family=Subspace(dims=DIMS), given={}), {}, plain, True)[0].shape == (3, 3)


def test_scores_of_poses_integrate_as_at_one_pose(lumps):
    truth, _, _, (h, gram) = lumps
    pairs = tuple((i, j) for i in range(1 + DIMS) for j in range(i, 1 + DIMS))
    with jax.enable_x64(True):
        shared = FAMILY.with_mixture({}, truth)
        templates = SimpleNamespace(
            family=FAMILY, shared=shared, pairs=pairs, observation=SimpleNamespace(contrast=None)
        )
        packed = jnp.stack([jnp.asarray(gram[:10, i, j]) for i, j in pairs], -1)[:, None]
        found = jax.jit(lambda cross, packed: latent_ratio(templates, cross, packed))(h[:10, None, None], packed)
        expected = jax.jit(lambda h, gram: design_moments(FAMILY, shared, h, gram, None).log_ratio)(h[:10], gram[:10])
        np.testing.assert_allclose(np.asarray(found).ravel(), np.asarray(expected), rtol=1e-9)


@pytest.mark.slow
def test_two_lumps_are_preferred_where_there_are_two():
    """Two states along one motion: the mixture is ahead on held-out images, tells them apart, and never falls."""
    made = simulated(n=600, size=16, snr=0.3, states=2, seed=1)
    plain, mixed = (
        fit(Subspace(dims=1, mixture=count), made.particles, EM(iterations=20), key=jax.random.key(0))
        for count in (1, 2)
    )
    rows = [row["objective"] for row in mixed.trace]
    assert all(b >= a - 1e-4 * abs(a) for a, b in zip(rows, rows[1:], strict=False)), rows
    held = mixed.local["held_out"].astype(bool)
    gain = (mixed.local["log_evidence"] - plain.local["log_evidence"])[held]
    assert gain.mean() > 3 * gain.std() / np.sqrt(len(gain)), (gain.mean(), gain.std())
    told = np.mean(mixed.local["responsibilities"].argmax(1) == made.states)
    assert max(told, 1 - told) > 0.95, told
    fixed = fit(
        Subspace(dims=1, mixture=2), made.particles, EM(iterations=6, learn_spectrum=False, learn_noise=False),
        key=jax.random.key(0), start=mixed,
    )  # fmt: skip
    rows = [row["objective"] for row in fixed.trace]
    assert all(b >= a - 1e-6 * abs(a) for a, b in zip(rows, rows[1:], strict=False)), rows


@pytest.mark.slow
def test_a_mixture_gains_nothing_where_latents_are_gaussian():
    rng = np.random.default_rng(0)
    made = simulated(n=600, size=16, snr=0.3, states=41, seed=2)
    near = np.exp(-0.5 * ((made.states - 20) / 8) ** 2) > rng.uniform(size=600)
    particles = made.particles.subset(np.flatnonzero(near))
    plain, mixed = (
        fit(Subspace(dims=1, mixture=count), particles, EM(iterations=20), key=jax.random.key(0)) for count in (1, 2)
    )
    held = mixed.local["held_out"].astype(bool)
    gain = (mixed.local["log_evidence"] - plain.local["log_evidence"])[held]
    assert abs(gain.mean()) < 0.15 + 2 * gain.std() / np.sqrt(len(gain)), (gain.mean(), gain.std())
