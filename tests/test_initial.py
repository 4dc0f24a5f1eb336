"""First guesses from the images: what they say of the noise, of the map's power, and of a reference's grey scale."""

import mrcfile
import numpy as np
import pytest

from hetmodels.cli import main
from hetmodels.data import Particles
from hetmodels.errors import DataError
from hetmodels.initial import first_spectra, grey_scale


@pytest.fixture(scope="module", params=[0.2, 2.0])
def simulated(request, tmp_path_factory):
    """Particles, and their true map."""
    place = tmp_path_factory.mktemp("initial")
    words = f"simulate {place}/a.star --phantom 1 -n 300 --box 32 --pixel 6 --snr {request.param} --json"
    assert main(words.split()) == 0
    return Particles.open(place / "a.star"), mrcfile.read(place / "a.truth" / "state_001.mrc")


def test_the_grey_scale_of_a_reference_is_found(simulated):
    particles, truth = simulated
    _, frame = first_spectra(particles)
    assert grey_scale(truth[None], frame) == pytest.approx(1, abs=0.2)
    ratio = grey_scale(0.01 * truth[None], frame) / grey_scale(truth[None], frame)
    assert ratio == pytest.approx(100, rel=1e-4)


def test_a_reference_without_power_is_refused(simulated):
    particles, truth = simulated
    with pytest.raises(DataError, match="zero in the band"):
        grey_scale(np.zeros_like(truth[None]), first_spectra(particles)[1])


def test_noise_is_that_of_the_simulation(simulated):
    particles, _ = simulated
    noise, _ = first_spectra(particles)
    power = noise[0] * np.asarray(particles.reference)[0]
    assert np.median(power[3:]) == pytest.approx(1, rel=0.1)  # the simulation's noise has variance 1
