"""The reference spectrum: the noise power of each optics group as the images themselves show it."""

from collections.abc import Callable

import numpy as np

from hetmodels.errors import DataError
from hetmodels.imaging.grids import Disc

MOST = 1000  # images per group
CHUNK = 256  # images read at a time


ROUNDING = 1e-12  # of the power; what is left of the difference of equal numbers

Read = Callable[[np.ndarray], np.ndarray]


def reference_spectrum(read: Read, group: np.ndarray, groups: int, disc: Disc) -> np.ndarray:
    """Radial mean of the variance of the Fourier coefficients over images, per optics group.

    This is the mean power less the power of the mean image (RELION's first estimate), with the n/(n-1) that makes it
    unbiased; it contains the signal's variation as well as the noise. Shells without power take the value of the
    nearest shell that has some; shell 0, which holds no pixels, takes that of shell 1. The images are spread evenly
    over the rows of the group, so that the same table always gives the same spectrum.

    Args:
        read: coefficients by image number, complex (n, pixels).
        group: group of each image, (N,).
        groups: number of groups; those without images get ones.
        disc: the pixels.

    Returns:
        E|x|^2 per complex coefficient, float64 (groups, shells), positive.

    Raises:
        DataError: if the images of a group have no power in the band.
    """
    spectrum = np.ones((groups, disc.shells))
    for g in range(groups):
        rows = np.flatnonzero(group == g)
        if len(rows):
            chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(np.int64))]
            spectrum[g] = _filled(_variance(read, chosen, disc), g)
    return spectrum


def _variance(read: Read, rows: np.ndarray, disc: Disc) -> np.ndarray:
    """Radial mean of the sample variance, (shells,); of one image, its power."""
    total = np.zeros(disc.pixels, np.complex128)
    power = np.zeros(disc.pixels)
    for start in range(0, len(rows), CHUNK):
        part = read(rows[start : start + CHUNK])
        total += part.sum(0, dtype=np.complex128)
        power += np.einsum("np,np->p", part.real, part.real, dtype=np.float64)
        power += np.einsum("np,np->p", part.imag, part.imag, dtype=np.float64)
    n = len(rows)
    variance = (power - np.abs(total) ** 2 / n) / (n - 1) if n > 1 else power
    variance[variance * n < ROUNDING * power] = 0
    return np.bincount(disc.shell, variance, disc.shells) / np.maximum(disc.shell_counts, 1)


def _filled(values: np.ndarray, group: int) -> np.ndarray:
    good = np.flatnonzero(np.isfinite(values) & (values > 0))
    if not len(good):
        raise DataError(
            f"optics group {group + 1}: its images do not vary in any Fourier shell of the band, so they hold no data. "
            "Are they copies of one image?"
        )
    nearest = np.abs(np.arange(len(values))[:, None] - good).argmin(1)
    return values[good[nearest]]
