"""Laws of noise: shell power, moments and symmetry of draws, RELION's units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_gaussian import waves

from hetmodels.imaging.grids import Disc
from hetmodels.imaging.noise import from_relion_sigma2, radial_power, sample_noise, to_relion_sigma2


@pytest.mark.parametrize("size", [8, 9])
def test_radial_power_is_the_mean_over_each_shell(size):
    disc = Disc(size)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(2, 3, disc.pixels)) + 1j * rng.normal(size=(2, 3, disc.pixels))).astype(np.complex64)
    found = radial_power(x, disc)
    assert found.shape == (2, 3, disc.shells) and found.dtype == np.float64
    assert np.all(found[..., 0] == 0)
    for shell in range(1, disc.shells):
        assert np.allclose(found[..., shell], (np.abs(x[..., disc.shell == shell]) ** 2).mean(-1), rtol=1e-6)


def test_white_noise_has_its_pixel_variance_in_every_shell():
    images = np.random.default_rng(1).normal(0, 3, (4000, 8, 8))
    disc = Disc(8)
    with jax.enable_x64(True):
        power = radial_power(disc.forward(jnp.asarray(images)), disc)
    sd = 9 / np.sqrt(4000 * disc.shell_counts[1:])
    assert np.all(np.abs(power.mean(0)[1:] - 9) < 5 * sd)


@pytest.mark.parametrize("size", [7, 8])
def test_draws_have_the_variance_and_no_symmetry(size):
    disc, n = Disc(size), 40_000
    variance = np.linspace(0.5, 4, disc.pixels)
    noise = np.asarray(sample_noise(jax.random.key(0), variance.astype(np.float32), (n, disc.pixels)))
    assert noise.dtype == np.complex64
    error = 5 / np.sqrt(n)
    assert np.abs((np.abs(noise) ** 2).mean(0) / variance - 1).max() < error
    assert np.abs((noise**2).mean(0) / variance).max() < error  # circular: no correlation of real with imaginary part
    assert np.abs(noise.mean(0) / np.sqrt(variance)).max() < error
    images = np.asarray(disc.inverse(jnp.asarray(noise)), float).reshape(n, -1)
    basis = waves(disc)
    exact = basis.T @ (np.tile(variance, 2)[:, None] * basis)  # stationary: a point-symmetric image has it doubled at 0
    assert np.abs(images.T @ images / n - exact).max() < 2 * error * exact.max()


def test_quadratic_sum_counts_two_real_numbers_per_pixel():
    disc, n = Disc(8), 20_000
    variance = np.linspace(0.5, 4, disc.pixels).astype(np.float32)
    noise = np.asarray(sample_noise(jax.random.key(1), variance, (n, disc.pixels)))
    chi2 = 2 * (np.abs(noise) ** 2 / variance).sum(1)
    freedom = 2 * disc.pixels
    assert chi2.mean() == pytest.approx(freedom, abs=5 * np.sqrt(2 * freedom / n))
    assert chi2.var() == pytest.approx(2 * freedom, rel=0.1)


def test_relion_units():
    """RELION: transform / N^2, variance of the real part. White noise of pixel variance s2 has s2 / (2 N^2)."""
    size, s2 = 16, 2.5
    images = np.random.default_rng(2).normal(0, np.sqrt(s2), (2000, size, size))
    relion = (np.fft.fft2(images)[:, 1, 2].real / size**2).var()
    assert to_relion_sigma2(s2, size) == pytest.approx(relion, rel=0.15)
    assert from_relion_sigma2(to_relion_sigma2(s2, size), size) == pytest.approx(s2, rel=1e-14)
