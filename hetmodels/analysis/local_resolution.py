"""Local resolution: the correlation of two half maps in a window that is moved over the map.

A window of width w sees frequencies only to within 1/w, and a shell of few voxels correlates by chance. So a value is
the first crossing of the threshold, a window is best some seven times as wide as the resolution looked for, and nothing
coarser than a window is said. Where a map ends sharply, far above the noise, windows see past its end.
"""

import dataclasses
import itertools

import numpy as np
import scipy.interpolate

from hetmodels.analysis import fourier
from hetmodels.analysis.fsc import Curve, from_transforms
from hetmodels.analysis.masks import cosine_edge
from hetmodels.errors import DataError

_WINDOWED = 0.5  # mean weight of a mask in a window below which there is nothing to correlate


@dataclasses.dataclass(frozen=True)
class LocalResolution:
    """Resolution at points on a lattice.

    Attributes:
        centres: voxels (z, y, x) of the windows, (points, 3).
        resolution: [Å], the window's diameter where nothing correlates, (points,).
        size: box edge [voxels].
        spacing: voxel size [Å].
    """

    centres: np.ndarray
    resolution: np.ndarray
    size: int
    spacing: float

    def map(self) -> np.ndarray:
        """Resolution of every voxel [Å]: linear between the windows, the nearest one outside them, (N, N, N)."""
        grid = np.stack(np.meshgrid(*[np.arange(self.size)] * 3, indexing="ij"), -1).reshape(-1, 3)
        nearest = scipy.interpolate.NearestNDInterpolator(self.centres, self.resolution)(grid)
        if len(self.centres) < 8:
            return nearest.reshape(*[self.size] * 3).astype(np.float32)
        jitter = 1e-6 * np.random.default_rng(0).standard_normal(self.centres.shape)
        between = scipy.interpolate.LinearNDInterpolator(self.centres + jitter, self.resolution)(grid)
        return np.where(np.isfinite(between), between, nearest).reshape(*[self.size] * 3).astype(np.float32)


def local_resolution(
    a: np.ndarray,
    b: np.ndarray,
    spacing: float,
    mask: np.ndarray | None = None,
    *,
    step: float = 25.0,
    radius: float = 12.5,
    edge: float = 25.0,
    threshold: float = 1 / 7,
) -> LocalResolution:
    """Windowed Fourier shell correlation of two half maps.

    Args:
        a: half map (N, N, N).
        b: half map (N, N, N).
        spacing: voxel size [Å].
        mask: weights 0 … 1; windows that see little of it are left out, all are taken if not given.
        step: distance between windows [Å].
        radius: radius of a window's flat part [Å].
        edge: width of its cosine edge [Å].
        threshold: of the correlation.

    Raises:
        DataError: if boxes differ, voxels are not finite, or a window is narrower than ten voxels or does not fit.
    """
    a, b = fourier.check_map(a, "first half map"), fourier.check_map(b, "second half map")
    size, width = len(a), 2 * (radius + edge / 2)
    if a.shape != b.shape or (mask is not None and mask.shape != a.shape):
        raise DataError("local resolution: half maps and mask must have the same box.")
    if not 10 * spacing <= width <= size * spacing:
        raise DataError(
            f"local resolution: a window, {width:.1f} Å wide, must span at least 10 voxels ({10 * spacing:.1f} Å) "
            f"and fit the box ({size * spacing:.1f} Å). Choose another radius or edge."
        )
    stride = max(1, round(step / spacing))
    line = range(size // 2 % stride, size, stride)
    box = min(size, 2 * int(np.ceil((radius + edge) / spacing)) + 2)
    window = cosine_edge(_distance(box) * spacing - radius, edge)
    centres, values = [], []
    for centre in itertools.product(line, line, line):
        weight = window if mask is None else window * _cut(mask, centre, box)
        if mask is not None and weight.sum() < _WINDOWED * window.sum():
            continue
        one, other = (fourier.forward(_cut(x, centre, box) * weight) for x in (a, b))
        centres.append(centre)
        values.append(_crossing(from_transforms(one, other, spacing), threshold, width))
    if not centres:
        raise DataError(
            "local resolution: no window lies in the mask. Choose a smaller radius or step, or a wider mask."
        )
    return LocalResolution(np.array(centres), np.array(values), size, spacing)


def _crossing(curve: Curve, threshold: float, width: float) -> float:
    """Resolution of a window, no coarser than its width: shells coarser than that hold nothing of their own."""
    first = max(1, int(np.ceil(curve.size * curve.spacing / width)))
    below = np.flatnonzero(curve.correlation[first:] < threshold)
    end = 2 * curve.spacing
    if not below.size:
        return end
    k = first + int(below[0])
    if k == first:
        return width
    high, low = curve.correlation[k - 1], curve.correlation[k]
    return float(np.clip(curve.size * curve.spacing / (k - 1 + (high - threshold) / (high - low)), end, width))


def _cut(volume: np.ndarray, centre: tuple[int, ...], box: int) -> np.ndarray:
    """A cube about a voxel, wrapped around the edges of the map."""
    index = [np.arange(c - box // 2, c - box // 2 + box) % len(volume) for c in centre]
    return volume[np.ix_(*index)]


def _distance(size: int) -> np.ndarray:
    x = np.arange(size) - size // 2
    return np.sqrt(x[:, None, None] ** 2 + x[None, :, None] ** 2 + x**2)
