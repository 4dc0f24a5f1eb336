import numpy as np
import pytest

from hetmodels.analysis import fourier, fsc, sharpening

SIZE, SPACING = 48, 1.5


def falling(bfactor, seed=0):
    white = np.random.default_rng(seed).standard_normal((SIZE,) * 3)
    s = fourier.radius(SIZE) / (SIZE * SPACING)
    return fourier.filtered(white, np.exp(-bfactor * s.astype(float) ** 2 / 4))


def curve(values):
    voxels = fsc.fsc(falling(0), falling(0), SPACING).voxels
    return fsc.Curve(values, voxels, SIZE, SPACING)


def test_guinier_fit_finds_the_fall_off():
    fit = sharpening.guinier_fit(falling(120.0), curve(np.ones(24)), low=12.0)
    assert fit.bfactor == pytest.approx(120.0, abs=2.0) and fit.correlation < -0.99
    assert sharpening.guinier_fit(falling(120.0), curve(np.ones(24)), low=12.0, high=11.0) is None


def test_noise_is_weighted_away_before_the_fit():
    """Map = signal + noise: C_ref takes the noise out, so the fit sees the signal's own fall-off."""
    signal, noise = falling(150.0), 0.05 * falling(0.0, seed=1)
    s = np.arange(24) / (SIZE * SPACING)
    ssnr = np.exp(-150.0 * s**2 / 2) / 0.05**2
    half = curve(fsc.half_from_ssnr(ssnr))
    fit = sharpening.guinier_fit(signal + noise, half, low=12.0, high=3.3)
    assert fit.bfactor == pytest.approx(150.0, abs=5.0)


def test_sharpening_undoes_the_fall_off_inside_the_resolution():
    flat = sharpening.sharpen(falling(100.0), curve(np.ones(24)), 100.0, resolution=4.0)
    power = fourier.shell_sum(abs(fourier.forward(flat)) ** 2, fourier.shell_index(SIZE), 24)
    reference = fourier.shell_sum(abs(fourier.forward(falling(0.0))) ** 2, fourier.shell_index(SIZE), 24)
    np.testing.assert_allclose(power[2:16] / reference[2:16], 1.0, rtol=1e-5)
    assert np.all(power[20:] < 1e-10 * reference[20:])


def test_weighting_alone_is_the_reference_correlation():
    half = np.linspace(1.0, 0.2, 24)
    weighted = sharpening.sharpen(falling(0.0), curve(half), 0.0, resolution=2 * SPACING)
    power = fourier.shell_sum(abs(fourier.forward(weighted)) ** 2, fourier.shell_index(SIZE), 24)
    reference = fourier.shell_sum(abs(fourier.forward(falling(0.0))) ** 2, fourier.shell_index(SIZE), 24)
    np.testing.assert_allclose(power[:22] / reference[:22], 2 * half[:22] / (1 + half[:22]), rtol=1e-5)


def test_two_regions_of_two_bfactors_are_told_apart():
    """Each half of the map has a fall-off of its own; the fit inside a mask of each finds it."""
    x = np.arange(SIZE) - SIZE // 2
    soft = 1 / (1 + np.exp(-x / 1.0))
    both = falling(60.0, 2) * soft + falling(180.0, 3) * (1 - soft)
    for sign, bfactor in ((1, 60.0), (-1, 180.0)):
        side = 0.5 - 0.5 * np.cos(2 * np.pi * np.clip((sign * x - 4) / 20, 0, 1))  # a window without side lobes
        fit = sharpening.guinier_fit(both * side, curve(np.ones(24)), low=12.0, high=3.6)
        assert fit.bfactor == pytest.approx(bfactor, abs=8.0)
