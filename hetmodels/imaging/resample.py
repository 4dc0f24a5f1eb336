"""Band-limited maps sampled in another box of the same extent."""

import numpy as np
import scipy.fft


def resampled(maps: np.ndarray, size: int) -> np.ndarray:
    """Fourier crop or padding; values keep their scale.

    Args:
        maps: (…, N, N, N).
        size: box edge of the result. The Nyquist planes of the smaller box are zero if its edge is even.

    Returns:
        Maps (…, size, size, size).
    """
    n = maps.shape[-1]
    if size == n:
        return maps
    axes = (-3, -2, -1)
    full = scipy.fft.rfftn(scipy.fft.ifftshift(maps, axes=axes), axes=axes)
    low = (min(n, size) - 1) // 2
    line = np.arange(-low, low + 1)
    new = np.zeros((*maps.shape[:-3], size, size, size // 2 + 1), full.dtype)
    kept = line[:, None, None], line[:, None], np.arange(low + 1)
    new[..., kept[0] % size, kept[1] % size, kept[2]] = full[..., kept[0] % n, kept[1] % n, kept[2]]
    values = scipy.fft.fftshift(scipy.fft.irfftn(new, s=(size,) * 3, axes=axes), axes=axes) * (size / n) ** 3
    return values.astype(maps.dtype)
