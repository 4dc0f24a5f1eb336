"""What a right model leaves of the images is noise; what a wrong one leaves is not."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from simulated import simulated

from hetmodels.analysis.image_check import check_images
from hetmodels.errors import DataError
from hetmodels.families import Classes, Homogeneous
from hetmodels.families.protocol import Frame
from hetmodels.local import exact_local
from hetmodels.observation import Known, Observation, Radial
from hetmodels.posterior import Posterior

SIZE, PIXEL, COUNT = 16, 12.0, 1500
FRAME = Frame(SIZE, PIXEL, (1.0,) * 8)


@pytest.fixture(scope="module")
def data():
    return simulated(n=COUNT, size=SIZE, snr=0.2, states=2, ctf=True)


def true_noise(data):
    return data.noise_sd**2 / data.particles.reference


def posterior(data, maps, noise, states=None):
    """A posterior that knows the truth of each particle's class."""
    particles, classes = data.particles, len(maps)
    nodes = np.eye(classes)[data.states if states is None else states]
    spectra = jnp.ones(8)
    shared = {"maps": maps, "maps_tau2": spectra, "weights": np.full(classes, 1 / classes), "noise": noise}
    shift = particles.shift * particles.relative[:, None]
    local = {
        "mean": np.zeros((COUNT, 0)), "covariance": np.zeros((COUNT, 0, 0)), "responsibilities": nodes,
        "contrast": np.ones(COUNT), "outlier": np.zeros(COUNT), "log_evidence": np.zeros(COUNT),
        "held_out": particles.held_out, "rotation": particles.rotation, "shift": shift,
    }  # fmt: skip
    facts = {"data_hash": particles.data_hash, "pose": "Known()", "box": SIZE, "spacing": PIXEL}
    return Posterior(
        Classes(classes, order=3, frame=FRAME),
        {name: np.asarray(value, np.float32)[None, None] for name, value in shared.items()},
        True,
        local,
        provenance=facts,
    )


def chi(check):
    return float(np.nanmean(check.of_image))


def test_a_right_model_leaves_noise_in_every_shell(data):
    check = check_images(posterior(data, data.truth, true_noise(data)), data.particles)
    held = data.particles.held_out
    assert len(check.rows) == COUNT and held.any()
    both = np.where(np.isfinite(check.held_out), 0.5 * (check.training + check.held_out), np.nan)[1:]
    assert np.all(np.abs(both - 1) < check.band[1:] + 0.02)  # 0.02: trilinear slices of a phantom given by formula
    assert abs(chi(check) - 1) < 0.02
    np.testing.assert_allclose(np.linalg.norm(check.view, axis=1), 1, atol=1e-5)
    assert np.corrcoef(check.view[:, 2], data.particles.rotation[check.rows, 2, 2])[0, 1] > 0.999


def test_drawn_latents_obey_the_same_law_as_integrated_ones(data):
    right = posterior(data, data.truth, true_noise(data))

    class Opaque(Classes):
        """Classes that do not show that they are linear."""

        components = design = updated = spectra = None

    hidden = dataclasses.replace(right, family=Opaque(2, order=3, frame=FRAME))
    exact, drawn = (check_images(p, data.particles) for p in (right, hidden))
    assert abs(chi(drawn) - chi(exact)) < 0.01
    np.testing.assert_allclose(drawn.training[1:], exact.training[1:], atol=0.04)


@pytest.mark.parametrize(
    ("spoil", "low", "high"),
    [
        (lambda maps, noise: (maps, 1.21 * noise), 0.80, 0.86),
        (lambda maps, noise: (-maps, noise), 1.2, 9.0),
        (lambda maps, noise: (1.5 * maps, noise), 1.03, 9.0),
    ],
    ids=["noise sd 1.1 times too large", "contrast of the wrong sign", "maps too strong"],
)
def test_planted_faults_are_seen(data, spoil, low, high):
    maps, noise = spoil(data.truth, true_noise(data))
    assert low < chi(check_images(posterior(data, maps, noise), data.particles)) < high


@pytest.mark.slow
def test_the_gain_is_that_over_the_mean_volume(data):
    """Two equal maps gain nothing over their mean; two true ones what a hand count of evidences says."""
    noise = true_noise(data)
    right = posterior(data, data.truth, noise)
    batch = data.particles.batch(np.flatnonzero(data.particles.held_out))
    observation = Observation(data.particles.disc, PIXEL, 1, COUNT, Known(), Radial())
    shared = right.shared_point()
    own = np.asarray(exact_local(right.family, shared, batch, observation, shared["noise"], None).log_evidence)
    share = right.local["responsibilities"].mean(0)
    mean = jnp.asarray(np.tensordot(share, data.truth, 1), jnp.float32)
    one = {"map": mean, "map_tau2": jnp.ones(8)}
    alone = exact_local(Homogeneous(order=3, frame=FRAME), one, batch, observation, shared["noise"], None).log_evidence
    right.local["log_evidence"][data.particles.held_out] = own
    check = check_images(right, data.particles)
    gain = own - np.asarray(alone)
    assert check.gain == pytest.approx(gain.mean(), abs=1e-2) and check.gain > 5 * check.gain_se
    same = posterior(data, np.stack([mean, mean]), noise)
    same.local["log_evidence"][data.particles.held_out] = np.asarray(alone)
    assert abs(check_images(same, data.particles).gain) < 1e-2


def test_other_images_are_refused(data):
    other = posterior(data, data.truth, true_noise(data))
    other.provenance["data_hash"] = "another"
    with pytest.raises(DataError, match="not those of the fit"):
        check_images(other, data.particles)
