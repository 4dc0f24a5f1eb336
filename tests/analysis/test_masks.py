import numpy as np
import pytest

from hetmodels.analysis import masks
from hetmodels.data.maps import write_map
from hetmodels.errors import DataError

SIZE, SPACING = 32, 3.0


def ball(radius, centre=(0, 0, 0), level=1.0):
    g = (np.arange(SIZE) - SIZE // 2) * SPACING
    z, y, x = np.meshgrid(g, g, g, indexing="ij")
    r = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
    return np.where(r <= radius, level, 0.0).astype(np.float32)


def test_sphere_has_its_volume_and_a_cosine_edge():
    mask = masks.sphere(SIZE, SPACING, radius=30.0, edge=0.0)
    assert mask.sum() * SPACING**3 == pytest.approx(4 / 3 * np.pi * 30**3, rel=0.03)
    soft = masks.sphere(SIZE, SPACING, radius=24.0, edge=12.0)
    line = soft[SIZE // 2, SIZE // 2, SIZE // 2 :]
    distance = np.arange(len(line)) * SPACING - 24.0
    np.testing.assert_allclose(line, 0.5 * (1 + np.cos(np.pi * np.clip(distance / 12, 0, 1))), atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_mask_from_map_holds_the_particle_and_little_else(noise):
    particle = ball(24.0)
    volume = particle + noise * np.random.default_rng(0).standard_normal(particle.shape).astype(np.float32)
    mask = masks.from_map(volume, SPACING, extend=6.0, edge=9.0)
    assert mask[particle > 0].min() == 1.0
    assert mask[ball(24.0 + 6.0 + 9.0 + 9.0) == 0].max() == 0.0
    assert 0 <= mask.min() and mask.max() == 1.0


def test_specks_are_dropped_and_threshold_obeyed():
    volume = ball(24.0, (-15, 0, 0)) + ball(6.0, (36, 0, 0))
    where = (SIZE // 2, SIZE // 2, SIZE // 2 + 12)
    assert masks.from_map(volume, SPACING, threshold=0.2, lowpass=6.0, edge=0.0)[where] == 0
    assert masks.from_map(volume, SPACING, threshold=0.2, lowpass=6.0, edge=0.0, speck=0.0)[where] == 1
    with pytest.raises(DataError, match="0 of 32768 voxels exceed 2"):
        masks.from_map(volume, SPACING, threshold=2.0)


def test_files_are_checked(tmp_path):
    path = tmp_path / "mask.mrc"
    write_map(path, ball(20.0), SPACING)
    np.testing.assert_array_equal(masks.from_file(path, SIZE, SPACING), ball(20.0))
    with pytest.raises(DataError, match="box of the maps, 64 voxels, found 32"):
        masks.from_file(path, 64, SPACING)
    with pytest.raises(DataError, match="voxel size of the maps, 1.5000 Å, found 3.0000"):
        masks.from_file(path, SIZE, 1.5)
    with pytest.raises(DataError, match="must lie in 0 … 1"):
        masks.check(ball(20.0, level=7.0), SPACING, SIZE, SPACING)
    with pytest.raises(DataError, match="all its weights are zero"):
        masks.check(ball(20.0, level=0.0), SPACING, SIZE, SPACING)
