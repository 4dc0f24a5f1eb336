import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hetmodels.analysis import alignment
from hetmodels.errors import DataError

SPACING = 3.0
RNG = np.random.default_rng(0)
CENTRES, WEIGHTS = RNG.normal(0, 3.2, (20, 3)), RNG.uniform(0.5, 1.5, 20)


def molecule(centres, size):
    g = np.arange(size) - size // 2
    z, y, x = np.meshgrid(g, g, g, indexing="ij")
    parts = ((x - c[0]) ** 2 + (y - c[1]) ** 2 + (z - c[2]) ** 2 for c in centres)
    return sum(w * np.exp(-r2 / (2 * 1.6**2)) for w, r2 in zip(WEIGHTS, parts, strict=True)).astype(np.float32)


@pytest.mark.parametrize("size", [31, 32])
def test_apply_moves_the_content_as_stated(size):
    turn = Rotation.random(random_state=5).as_matrix()
    shift = np.array([1.3, -2.2, 0.7])
    moved = alignment.Alignment(turn, shift * SPACING, False, 1.0).apply(molecule(CENTRES, size), SPACING)
    exact = molecule(CENTRES @ turn.T + shift, size)
    assert np.linalg.norm(moved - exact) < 2e-3 * np.linalg.norm(exact)
    flipped = alignment.mirror(molecule(CENTRES, size))
    np.testing.assert_allclose(flipped, molecule(CENTRES * [1, 1, -1], size), atol=1e-4)


@pytest.mark.parametrize("mirrored", [pytest.param(False, marks=pytest.mark.slow), True])
def test_align_finds_rotation_shift_and_hand(mirrored):
    pytest.importorskip("hetmodels.imaging.rotations")
    turn = Rotation.random(random_state=7).as_matrix()
    shift = np.array([-1.1, 0.4, 2.3])
    reference = molecule(CENTRES @ turn.T + shift, 32)
    moving = alignment.mirror(molecule(CENTRES, 32)) if mirrored else molecule(CENTRES, 32)
    moving = moving + 0.2 * moving.std() * RNG.standard_normal(moving.shape).astype(np.float32)
    found = alignment.align(moving, reference, SPACING, hands=True)
    assert found.mirrored == mirrored and found.correlation > 0.98 and found.other < found.correlation - 0.02
    angle = Rotation.from_matrix(found.rotation @ turn.T).magnitude()
    assert np.degrees(angle) < 1.0
    np.testing.assert_allclose(found.shift, shift * SPACING, atol=0.3)


def test_maps_that_cannot_be_aligned_are_refused():
    pytest.importorskip("hetmodels.imaging.rotations")
    with pytest.raises(DataError, match="found 16 and 18"):
        alignment.align(molecule(CENTRES, 16), molecule(CENTRES, 18), SPACING)
    with pytest.raises(DataError, match="constant"):
        alignment.align(np.zeros((16,) * 3), molecule(CENTRES, 16), SPACING)
