"""What a correct reconstruction at known poses reaches, shell by shell, from the data's own numbers."""

import numpy as np


def map_ssnr(shell: np.ndarray, particles: float, ctf2: np.ndarray, tau2: np.ndarray, sigma2: np.ndarray) -> np.ndarray:
    """Signal-to-noise ratio of a map, n <C²> tau²/(2 k sigma²).

    A slice passes a voxel at radius k with probability 1/(2k) (circle over sphere), so each voxel is seen n/(2k) times.

    Args:
        shell: radius k [Fourier pixels], 1 and up.
        particles: number n of images, views spread uniformly.
        ctf2: mean squared contrast transfer on each shell.
        tau2: E|V^|² of the map per voxel, orthonormal 2-D normalisation.
        sigma2: E|n|² per complex pixel.

    Returns:
        One value per shell; see `fsc.half_from_ssnr` and `fsc.truth_from_ssnr` for the correlations.
    """
    return particles * ctf2 * tau2 / (2.0 * shell * sigma2)


def particles_for_half(shell: np.ndarray, ctf2: np.ndarray, tau2: np.ndarray, sigma2: np.ndarray) -> np.ndarray:
    """Images needed for a correlation of 0.5 with the truth at each shell, 2 k sigma²/(3 <C²> tau²)."""
    return 2.0 * shell * sigma2 / (3.0 * ctf2 * tau2)


def pose_loss(
    shell: np.ndarray, size: int, shift_sd: float, angle_sd: float, gyration: float, spacing: float
) -> np.ndarray:
    """Factor on amplitudes left by random pose errors, exp(-½ (2πk/N)² (s_t² + ⅔ s_θ² R_g²)) in pixels.

    Args:
        shell: radius k [Fourier pixels].
        size: box edge N [pixels].
        shift_sd: standard deviation of the shift per axis [Å].
        angle_sd: standard deviation of the rotation per axis [rad].
        gyration: root-mean-square radius of the molecule [Å].
        spacing: pixel size [Å].
    """
    variance = shift_sd**2 + 2.0 / 3.0 * (angle_sd * gyration) ** 2
    return np.exp(-0.5 * (2.0 * np.pi * shell / (size * spacing)) ** 2 * variance)
