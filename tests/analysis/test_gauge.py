import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from hetmodels.analysis import fourier
from hetmodels.analysis.gauge import locate, region_coverage
from hetmodels.analysis.latent_scores import model_scores
from hetmodels.analysis.map_space import MapSpace
from hetmodels.data.maps import Map
from hetmodels.imaging.grids import Disc
from hetmodels.imaging.rotations import from_quaternion
from hetmodels.posterior import Posterior
from hetmodels.tree import pytree
from hetmodels.volumes.gaussians import Gaussians
from hetmodels.volumes.voxels import Voxels

SIZE, SPACING, STATES, EACH = 16, 3.0, 40, 25
RNG = np.random.default_rng(0)
MAPS = np.stack(
    [fourier.filtered(m, fourier.lowpass_gain(SIZE, SPACING, 9.0)) for m in RNG.normal(size=(3, SIZE, SIZE, SIZE))]
)
MAPS[0] *= 4
TURN = np.array([[1.5, 0.4], [-0.3, 0.8]])  # latents of the model from the true ones
TRUE = RNG.normal(size=(STATES, 2))


@pytree
class Plane:
    """A mean map to which two others are added, the second times a square root of a square where it is bent."""

    def shared(self):
        return {}

    def conformation(self, shared):
        return dist.Normal(0, 1).expand([2]).to_event(1)

    def volume(self, shared, z):
        maps = shared["maps"]
        bend = shared["bend"] * z[1] ** 2
        return Voxels(maps[0] + z[0] * maps[1] + (z[1] + bend) * maps[2], SPACING)


def run(bend=0.0, spread=0.3, scale=2.5, seed=1):
    """A model that has the true maps exactly, in coordinates and grey values of its own; a calibrated posterior."""
    rng = np.random.default_rng(seed)
    own = scale * np.concatenate([MAPS[:1], np.tensordot(np.linalg.inv(TURN), MAPS[1:], 1)])
    z = (TRUE @ TURN).repeat(EACH, axis=0)
    root = spread * np.array([[1.0, 0.0], [0.8, 0.6]])
    mean = z + rng.normal(size=z.shape) @ root.T
    local = {"mean": mean, "covariance": np.broadcast_to(root @ root.T, (len(z), 2, 2)).copy()}
    shared = {"maps": own.astype(np.float32)[None, None], "bend": np.full((1, 1), bend)}
    return Posterior(Plane(), shared, True, local, provenance={"box": SIZE, "spacing": SPACING})


def true_map(state):
    values = MAPS[0] + np.tensordot(TRUE[state - 1], MAPS[1:], 1)
    return Map(values.astype(np.float32), SPACING, np.zeros(3))


def located(posterior, start):
    loads = [lambda s=s: true_map(s + 1).values for s in range(STATES)]
    return locate(MapSpace.of(posterior), loads, np.full(STATES, 1 / STATES), start)


def test_true_states_are_found_in_the_models_coordinates_and_grey_values():
    found = located(run(), np.zeros((STATES, 2)))
    np.testing.assert_allclose(found.latents, TRUE @ TURN, atol=1e-3)
    assert found.scale == pytest.approx(2.5, rel=1e-4) and found.unexplained < 1e-6


def test_a_curved_model_is_followed_by_its_derivatives():
    posterior = run(bend=0.05)
    found = located(posterior, TRUE @ TURN)
    space = MapSpace.of(posterior)
    for z, state in zip(found.latents[:5], range(5), strict=True):
        target = found.scale * space.vector(true_map(state + 1).values)
        assert np.linalg.norm(space.at(z) - target) < 1e-3 * np.linalg.norm(target)


def test_coverage_is_right_for_a_calibrated_posterior_in_any_coordinates_and_wrong_for_a_narrow_one():
    states, notes = np.arange(1, STATES + 1).repeat(EACH), []
    scores = {s.name: s for s in model_scores(run(), true_map, states, notes)}
    n = STATES * EACH
    assert scores["coverage_50"].value == pytest.approx(0.5, abs=3 * np.sqrt(0.25 / n))
    assert scores["coverage_90"].value == pytest.approx(0.9, abs=3 * np.sqrt(0.09 / n))
    assert scores["subspace_angle_deg"].value < 0.1
    assert scores["subspace_captured"].value == pytest.approx(scores["subspace_captured"].ceiling, abs=1e-5)
    assert scores["unexplained_variance"].value < 1e-5 and not notes
    narrow = run()
    narrow = dataclasses.replace(narrow, local=narrow.local | {"covariance": narrow.local["covariance"] / 4})
    assert {s.name: s.value for s in model_scores(narrow, true_map, states, notes)}["coverage_90"] < 0.7


def test_a_subspace_that_misses_the_second_motion_says_so():
    posterior = run()
    shared = dict(posterior.shared)
    other = fourier.filtered(
        np.random.default_rng(9).normal(size=(SIZE,) * 3), fourier.lowpass_gain(SIZE, SPACING, 9.0)
    )
    shared["maps"] = np.stack([2.5 * MAPS[0], 2.5 * MAPS[1], other]).astype(np.float32)[None, None]
    states = np.arange(1, STATES + 1).repeat(EACH)
    scores = {s.name: s for s in model_scores(dataclasses.replace(posterior, shared=shared), true_map, states, [])}
    second = TRUE[:, 1].var() / TRUE.var(0).sum()
    assert scores["unexplained_variance"].value == pytest.approx(second, abs=0.15)
    assert scores["subspace_captured"].value < 0.9 < scores["subspace_captured"].ceiling


def test_true_maps_of_another_extent_are_not_compared():
    notes = []
    small = lambda state: Map(np.zeros((8,) * 3, np.float32), SPACING, np.zeros(3))  # noqa: E731
    assert model_scores(run(), small, np.arange(1, STATES + 1).repeat(EACH), notes) == [] and "coverage" in notes[0]


def test_region_coverage_is_that_of_chi_square():
    rng = np.random.default_rng(5)
    root = np.array([[2.0, 0, 0], [0.5, 1.0, 0], [0.1, -0.3, 0.2]])
    mean = rng.normal(size=(20000, 3)) @ root.T
    for level in (0.5, 0.9):
        found = region_coverage(np.zeros((20000, 3)), mean, np.broadcast_to(root @ root.T, (20000, 3, 3)), level)
        assert found == pytest.approx(level, abs=0.012)


def test_the_metric_is_the_expected_information_of_an_image():
    """Against images: the mean of 2 |dx/dz|² / sigma² over random views of a map that is projected exactly."""
    size, rng = 24, np.random.default_rng(6)
    centres, disc = jnp.asarray(rng.normal(size=(30, 3)) * 9, jnp.float32), Disc(size)
    direction = jnp.asarray(rng.normal(size=(30, 3)) * 2, jnp.float32)

    @pytree
    class Moved:
        def shared(self):
            return {}

        def conformation(self, shared):
            return dist.Normal(0, 1).expand([1]).to_event(1)

        def volume(self, shared, z):
            return Gaussians(shared["centres"] + z[0] * direction, jnp.ones(30), jnp.full(30, 5.0))

    known = np.r_[0, np.linspace(1, 0.2, disc.shells - 1)]
    posterior = Posterior(
        Moved(), {"centres": np.asarray(centres)[None, None]}, True, {"mean": np.zeros((2, 1))},
        provenance={"box": size, "spacing": SPACING}, extra={"information": known},
    )  # fmt: skip
    found = MapSpace.of(posterior).metric(np.zeros(1))[0, 0]
    volume = lambda z: Gaussians(centres + z * direction, jnp.ones(30), jnp.full(30, 5.0))  # noqa: E731
    turns = from_quaternion(jnp.asarray(rng.normal(size=(400, 4)), jnp.float32))
    slope = jax.vmap(lambda r: jax.jvp(lambda z: volume(z).project(r, disc.grid(SPACING)), (0.0,), (1.0,))[1])(turns)
    expected = 2 * (np.abs(np.asarray(slope)) ** 2 * known[disc.shell]).sum(1)
    assert found == pytest.approx(expected.mean(), rel=0.05)
