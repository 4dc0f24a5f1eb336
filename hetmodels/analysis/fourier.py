"""Fourier transforms of maps on the half-volume, radial shells, low-pass filters and cropping (numpy, float64 sums)."""

from functools import lru_cache

import numpy as np
import scipy.fft

from hetmodels.errors import DataError
from hetmodels.imaging.resample import resampled


@lru_cache(maxsize=4)
def radius(size: int) -> np.ndarray:
    """|xi| in Fourier pixels at each point of the half-volume (size, size, size//2 + 1), corner layout."""
    k = scipy.fft.fftfreq(size, 1 / size)
    half = np.arange(size // 2 + 1, dtype=float)
    out = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + half**2).astype(np.float32)
    out.setflags(write=False)
    return out


@lru_cache(maxsize=4)
def multiplicity(size: int) -> np.ndarray:
    """How many points of the full volume each kx plane of the half-volume stands for, (size//2 + 1,)."""
    out = np.full(size // 2 + 1, 2.0)
    out[0] = 1.0
    if size % 2 == 0:
        out[-1] = 1.0
    out.setflags(write=False)
    return out


@lru_cache(maxsize=4)
def shell_index(size: int) -> np.ndarray:
    """round(|xi|), the radial shell of each point of the half-volume, int32."""
    out = np.rint(radius(size)).astype(np.int32)
    out.setflags(write=False)
    return out


def shell_sum(values: np.ndarray, index: np.ndarray, shells: int) -> np.ndarray:
    """Sum over the shells 0 … shells-1 of the full volume of a real quantity on the half-volume, float64."""
    weighted = values * multiplicity(index.shape[0])
    return np.bincount(index.ravel(), weighted.ravel(), minlength=shells)[:shells]


def check_map(volume: np.ndarray, name: str = "map") -> np.ndarray:
    """The map itself if it is a finite cube of at least 4 voxels.

    Raises:
        DataError: if it is not.
    """
    volume = np.asarray(volume)
    if volume.ndim != 3 or len(set(volume.shape)) != 1 or volume.shape[0] < 4:
        raise DataError(f"{name}: must be a cube of at least 4 voxels per edge, found shape {volume.shape}.")
    if not np.isfinite(volume.sum(dtype=np.float64)):
        bad = int(np.count_nonzero(~np.isfinite(volume)))
        raise DataError(f"{name}: voxels must be finite, found {bad} that are NaN or infinite. Was the run completed?")
    return volume


def forward(volume: np.ndarray) -> np.ndarray:
    """Half-volume Fourier transform with the origin at size//2, not normalised: (size, size, size//2 + 1)."""
    return scipy.fft.rfftn(scipy.fft.ifftshift(volume))


def inverse(transform: np.ndarray, size: int) -> np.ndarray:
    """The real map of a half-volume transform made by `forward`."""
    return scipy.fft.fftshift(scipy.fft.irfftn(transform, s=(size, size, size)))


def filtered(volume: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """The map with each point of its half-volume transform multiplied by a real gain."""
    transform = forward(volume)
    return inverse(transform * gain.astype(transform.real.dtype), volume.shape[0])


def lowpass_gain(size: int, spacing: float, resolution: float, edge: float = 2.0) -> np.ndarray:
    """A raised-cosine low-pass on the half-volume: 1/2 at the resolution [Å], falling over `edge` shells."""
    cut = size * spacing / resolution
    x = np.clip((radius(size) - cut) / edge + 0.5, 0.0, 1.0)
    return 0.5 * (1.0 + np.cos(np.pi * x))


def crop(volume: np.ndarray, size: int) -> np.ndarray:
    """The band-limited map sampled in a coarser box of the same extent; values keep their scale.

    Args:
        volume: map (N, N, N).
        size: box edge of the result, at most N; the Nyquist planes of an even result are zero.

    Raises:
        DataError: if size exceeds the box.
    """
    n = volume.shape[0]
    if size > n:
        raise DataError(f"Fourier crop: the new box must not exceed the old one of {n} voxels, got {size}.")
    return resampled(volume, size)
