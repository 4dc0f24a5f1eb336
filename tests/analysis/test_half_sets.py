"""What two half-set models have in common does not depend on their coordinates, and can fail."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from hetmodels.analysis.half_sets import half_sets
from hetmodels.errors import UsageError
from hetmodels.families import Subspace
from hetmodels.families.protocol import Frame
from hetmodels.imaging.ball import Ball
from hetmodels.posterior import Posterior

SIZE, DIMS, COUNT = 12, 2, 60
POWER = (1.0,) * ((SIZE - 1) // 2 + 1)


def smooth(rng, count):
    ball = Ball(SIZE)
    white = jnp.asarray(rng.normal(size=(count, ball.coordinates)), jnp.float32)
    return np.asarray(ball.colour(white, jnp.asarray(POWER)))


def made(maps, z, deviation=0.1, score=0.0):
    """A posterior with mean map and components, and latents of particles."""
    half = np.arange(COUNT) % 2
    local = {
        "mean": z, "covariance": np.tile(deviation**2 * np.eye(DIMS), (COUNT, 1, 1)), "half": half,
        "responsibilities": np.ones((COUNT, 1)), "held_out": np.arange(COUNT) < 6, "outlier": np.zeros(COUNT),
        "log_predictive": np.full(COUNT, score),
    }  # fmt: skip
    shared = {"map": maps[0], "components": maps[1:]}
    family = Subspace(dims=DIMS, frame=Frame(SIZE, 10.0, POWER))
    facts = {"box": SIZE, "spacing": 10.0}
    return Posterior(family, {k: np.asarray(v)[None, None] for k, v in shared.items()}, True, local, provenance=facts)


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(0)
    maps, z = smooth(rng, 1 + DIMS), rng.normal(size=(COUNT, DIMS))
    return rng, maps, z, made(maps, z)


def test_models_that_differ_in_coordinates_only_agree_wholly(truth):
    rng, maps, z, first = truth
    turn, shift = rng.normal(size=(DIMS, DIMS)) + 2 * np.eye(DIMS), rng.normal(size=DIMS)
    components = np.tensordot(turn, maps[1:], 1)  # V = V_0 + z W = (V_0 - s T W) + (z T^-1 + s) T W
    mean = maps[0] - np.tensordot(shift, components, 1)
    second = made(np.concatenate([mean[None], components]), z @ np.linalg.inv(turn) + shift)
    found = half_sets(first, second)
    assert found.cosines == pytest.approx((1, 1), abs=1e-5) and found.components == 2
    assert np.array(found.crossed) == pytest.approx(1, abs=1e-6) and found.apart < 1e-2
    np.testing.assert_allclose(found.departures.correlation[1:], 1, atol=1e-4)
    assert "2 of 2 components" in found.words and found.values()["half_components_found"] == 2


def test_distances_are_in_posterior_deviations_and_unseen_particles_cost(truth):
    rng, maps, z, first = truth
    moved = made(maps, z + 0.2 * np.array([1.0, 1.0]), score=-0.5)
    found = half_sets(first, moved)
    assert found.apart == pytest.approx(2.0, rel=1e-4)
    trained, half = ~first.local["held_out"], first.local["half"]
    gain = np.where(half == 0, -0.5, 0.5)[trained]
    assert found.unseen[0] == pytest.approx(gain.mean(), abs=1e-9)


def test_common_maps_hide_nothing(truth):
    """With the same mean map and unrelated components, whole maps agree and departures do not."""
    rng, maps, z, first = truth
    strong = np.concatenate([20 * maps[:1], maps[1:]])
    other = np.concatenate([20 * maps[:1], smooth(rng, DIMS)])
    found = half_sets(made(strong, z), made(other, rng.normal(size=(COUNT, DIMS))))
    assert found.whole.correlation[1:].min() > 0.9 and abs(found.departures.correlation[1:].mean()) < 0.3
    assert found.components == 0 and max(found.cosines) < 0.6
    assert np.max(found.crossed) < 0.8


def test_what_cannot_be_compared_is_refused(truth):
    first = truth[3]
    fewer = dataclasses.replace(first, local={name: v[:10] for name, v in first.local.items()})
    with pytest.raises(UsageError, match="same particles"):
        half_sets(first, fewer)
