"""Local resolution tells regions apart, agrees with the global curve where there is one, and knows its limits."""

import numpy as np
import pytest

from hetmodels.analysis import fourier, fsc
from hetmodels.analysis.local_resolution import local_resolution
from hetmodels.errors import DataError

SIZE, SPACING = 64, 2.0


def filtered_noise(rng, resolution):
    return fourier.filtered(rng.standard_normal((SIZE,) * 3), fourier.lowpass_gain(SIZE, SPACING, resolution))


def half_maps(signal, seed, noise=2.0):
    rng = np.random.default_rng(seed)
    return [signal + noise * rng.standard_normal(signal.shape) for _ in range(2)]


def test_two_regions_of_two_resolutions():
    rng = np.random.default_rng(0)
    fine, coarse = filtered_noise(rng, 6.0), filtered_noise(rng, 12.0)
    left = np.arange(SIZE) < SIZE // 2
    a, b = half_maps(np.where(left, fine / fine.std(), coarse / coarse.std()), 1)
    found = local_resolution(a, b, SPACING, step=16.0, radius=14.0, edge=14.0)
    x = found.centres[:, 2]
    inside = [(x > 14) & (x < 24), (x > 40) & (x < 54)]
    for here, signal in zip(inside, (fine, coarse), strict=True):
        whole = fsc.fsc(*half_maps(signal / signal.std(), 1), SPACING).resolution(1 / 7).resolution
        away = 1 / found.resolution[here] - 1 / whole
        assert abs(np.median(away)) < 1 / 42 and np.quantile(abs(away), 0.9) < 2 / 42
    everywhere = found.map()
    assert everywhere.shape == (SIZE,) * 3 and np.isfinite(everywhere).all()
    assert np.median(everywhere[:, :, 16:22]) < 0.7 * np.median(everywhere[:, :, 42:50])


def test_an_even_map_has_its_global_resolution_everywhere():
    signal = filtered_noise(np.random.default_rng(2), 8.0)
    a, b = half_maps(signal / signal.std(), 3)
    whole = fsc.fsc(a, b, SPACING).resolution(1 / 7).resolution
    found = local_resolution(a, b, SPACING, step=32.0, radius=16.0, edge=16.0).resolution
    assert abs(np.median(1 / found - 1 / whole)) < 1 / 48 and np.max(abs(1 / found - 1 / whole)) < 2 / 48


def test_noise_has_none_and_masks_are_obeyed():
    a, b = half_maps(np.zeros((SIZE,) * 3), 4)
    found = local_resolution(a, b, SPACING, step=32.0, radius=14.0, edge=14.0)
    assert np.median(found.resolution) > 0.6 * 42.0
    mask = np.zeros((SIZE,) * 3, np.float32)
    mask[:, :, :32] = 1
    found = local_resolution(a, b, SPACING, mask, step=16.0, radius=14.0, edge=14.0)
    assert np.all(found.centres[:, 2] <= 33)
    with pytest.raises(DataError, match="no window lies in the mask"):
        local_resolution(a, b, SPACING, 0 * mask)


def test_windows_must_make_sense():
    a = np.zeros((16,) * 3)
    with pytest.raises(DataError, match="must span at least 10 voxels"):
        local_resolution(a, a, 2.0, radius=2.0, edge=4.0)
    with pytest.raises(DataError, match="same box"):
        local_resolution(a, np.zeros((12,) * 3), 2.0)
