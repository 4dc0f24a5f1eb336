"""Particle sets that cannot be used are refused in words, before or when their images are read."""

import numpy as np
import pytest
from particle_sets import COUNT, SPACING, arrays, metadata, noise, optics, rotations, shifts

from hetmodels.data.particles import Particles
from hetmodels.errors import DataError, UsageError


@pytest.mark.parametrize("box", [15, 18, 2])
def test_impossible_boxes_are_refused(box):
    with pytest.raises(UsageError, match="--box.*even.*16"):
        arrays(box=box)


@pytest.mark.parametrize("window", [-1.0, 0.0, 49.0])
def test_impossible_windows_are_refused(window):
    with pytest.raises(UsageError, match="--window.*48"):
        arrays(window=window)


def test_fitting_asks_for_an_even_box():
    arrays().require_even()
    with pytest.raises(DataError, match="--box 16"):
        arrays(noise(4, 17)).require_even()


def test_lengths_must_agree():
    with pytest.raises(UsageError, match="rotation must have one row per image, 24, got 3"):
        Particles.from_arrays(noise(), rotations(3), shifts(), optics(COUNT), SPACING)
    with pytest.raises(UsageError, match="square"):
        Particles.from_arrays(noise()[:, :4], rotations(COUNT), shifts(), optics(COUNT), SPACING)
    with pytest.raises(DataError, match="no images"):
        Particles.from_arrays(noise()[:0], rotations(0), shifts(0), optics(0), SPACING)


BAD = {
    "no pixel size": ({"pixel": None}, "--pixel"),
    "pixel size zero": ({"pixel": np.zeros(COUNT)}, "pixel size must be positive"),
    "no particles": ({"stack": np.array([], object), "row": np.array([], int)}, "no particles"),
}


@pytest.mark.parametrize("case", BAD)
def test_tables_that_cannot_be_opened(tmp_path, case):
    changes, message = BAD[case]
    with pytest.raises(DataError, match=message):
        Particles.from_metadata(metadata(tmp_path, noise(), **changes))


def test_the_same_image_twice_needs_two_poses(tmp_path):
    row = np.arange(COUNT)
    row[[5, 9]] = 2
    Particles.from_metadata(metadata(tmp_path, noise(), row=row))
    turned, moved = rotations(COUNT), shifts()
    turned[9], moved[9] = turned[2], moved[2]
    with pytest.raises(DataError, match=r"000003@images.mrcs.*rows 2 and 9"):
        Particles.from_metadata(metadata(tmp_path, noise(), row=row, rotation=turned, shift=moved))


def spoiled(values: np.ndarray, row: int) -> np.ndarray:
    values = values.copy()
    values[row] = np.nan
    return values


UNFIT = {
    "no poses": ({"rotation": None, "shift": None, "pose_reason": "no rlnAngleRot"}, "no rlnAngleRot"),
    "NaN angle": ({"rotation": spoiled(rotations(COUNT), 4)}, "row 4"),
    "one pose": ({"rotation": np.tile(np.eye(3), (COUNT, 1, 1))}, "same orientation"),
    "no CTF": ({"ctf": None, "ctf_reason": "no rlnDefocusU"}, "no rlnDefocusU.*--no-ctf"),
    "NaN defocus": ({"ctf": vars(optics(COUNT)) | {"defocus_u": spoiled(np.ones(COUNT), 6)}}, "defocus_u of row 6"),
    "no defocus": (
        {"ctf": vars(optics(COUNT, defocus_u=np.zeros(COUNT), defocus_v=np.zeros(COUNT)))},
        "defoci are zero",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_tables_that_cannot_be_fitted(tmp_path, case):
    changes, message = UNFIT[case]
    particles = Particles.from_metadata(metadata(tmp_path, noise(), **changes))
    with pytest.raises(DataError, match=message):
        particles.require_poses()
        particles.batch(np.arange(4))


def test_without_poses_a_batch_has_identities(tmp_path):
    particles = Particles.from_metadata(metadata(tmp_path, noise(), rotation=None, shift=None))
    batch = particles.batch(np.arange(4))
    np.testing.assert_array_equal(batch.rotation, np.tile(np.eye(3), (4, 1, 1)))
    assert not np.any(batch.shift)


def test_copies_of_one_image_have_no_spectrum():
    with pytest.raises(DataError, match="optics group 1"):
        _ = arrays(np.tile(noise(1), (4, 1, 1))).reference
