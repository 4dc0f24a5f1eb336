"""Soft masks on maps: sphere, from a map by threshold, from a file. Weights run from 0 (solvent) to 1 (particle)."""

from pathlib import Path

import numpy as np
import scipy.ndimage

from hetmodels.analysis import fourier
from hetmodels.data.maps import read_map
from hetmodels.errors import DataError


def cosine_edge(distance: np.ndarray, width: float) -> np.ndarray:
    """1 up to distance 0, then a raised cosine that reaches 0 at `width` (same unit); a step for width 0."""
    if width <= 0:
        return (distance <= 0).astype(np.float32)
    x = np.clip(distance / width, 0.0, 1.0)
    return (0.5 * (1.0 + np.cos(np.pi * x))).astype(np.float32)


def sphere(size: int, spacing: float, radius: float, edge: float) -> np.ndarray:
    """A ball about the box centre with a soft edge.

    Args:
        size: box edge [voxels].
        spacing: voxel size [Å].
        radius: radius of the part with weight 1 [Å].
        edge: width of the cosine edge outside it [Å].

    Returns:
        Weights, float32 (size, size, size).
    """
    return cosine_edge(_from_centre(size) * spacing - radius, edge)


def _from_centre(size: int) -> np.ndarray:
    x = np.arange(size, dtype=np.float32) - size // 2
    return np.sqrt(x[:, None, None] ** 2 + x[None, :, None] ** 2 + x**2)


def automatic_threshold(volume: np.ndarray) -> float:
    """A density level between solvent and particle.

    The solvent's median plus four of its robust standard deviations, but at least a tenth and at most half of the way
    to the 99.9th percentile of the map. Solvent are the voxels outside the inscribed ball.

    Args:
        volume: low-pass filtered map (N, N, N).
    """
    outside = volume[_from_centre(volume.shape[0]) > 0.95 * (volume.shape[0] // 2)]
    median = float(np.median(outside))
    spread = 1.4826 * float(np.median(np.abs(outside - median)))
    height = float(np.quantile(volume, 0.999)) - median
    return median + min(max(4.0 * spread, 0.1 * height), 0.5 * height)


def from_map(
    volume: np.ndarray,
    spacing: float,
    *,
    threshold: float | None = None,
    lowpass: float = 15.0,
    extend: float = 6.0,
    edge: float = 10.0,
    speck: float = 0.05,
) -> np.ndarray:
    """A mask that follows the particle: low-pass, threshold, drop specks, extend, soft edge.

    Args:
        volume: map (N, N, N).
        spacing: voxel size [Å].
        threshold: density level after the low-pass; `automatic_threshold` if not given.
        lowpass: resolution of the low-pass [Å].
        extend: distance by which the thresholded region grows [Å].
        edge: width of the cosine edge beyond that [Å].
        speck: connected parts smaller than this fraction of the largest are dropped.

    Returns:
        Weights, float32 (N, N, N).

    Raises:
        DataError: if no voxel, or every voxel, lies above the threshold.
    """
    size = fourier.check_map(volume, "mask source").shape[0]
    smooth = fourier.filtered(volume, fourier.lowpass_gain(size, spacing, max(lowpass, 2.0 * spacing)))
    level = automatic_threshold(smooth) if threshold is None else threshold
    inside = smooth > level
    if not inside.any() or inside.all():
        raise DataError(
            f"mask: the threshold must separate particle and solvent, but {int(inside.sum())} of {inside.size} voxels "
            f"exceed {level:.4g}; the low-passed map runs from {smooth.min():.4g} to {smooth.max():.4g}. "
            "Give a threshold inside this range or a mask file."
        )
    labels, count = scipy.ndimage.label(inside)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    kept = np.concatenate([[False], sizes >= speck * sizes.max()])[labels]
    distance = scipy.ndimage.distance_transform_edt(~kept) * spacing
    return cosine_edge(distance - extend, edge)


def check(mask: np.ndarray, spacing: float, size: int, expected: float, name: str = "mask") -> np.ndarray:
    """The mask itself as float32 if it fits maps of a box and voxel size.

    Args:
        mask: weights (N, N, N).
        spacing: voxel size the mask states [Å]; 0 means that it states none.
        size: box edge of the maps [voxels].
        expected: voxel size of the maps [Å].
        name: how messages call the mask.

    Raises:
        DataError: if boxes or voxel sizes differ, weights leave 0 … 1, or all are zero.
    """
    mask = fourier.check_map(mask, name)
    if mask.shape[0] != size:
        raise DataError(
            f"{name}: a mask must have the box of the maps, {size} voxels, found {mask.shape[0]}. Resample the mask."
        )
    if spacing > 0 and abs(spacing / expected - 1.0) > 0.01:
        raise DataError(
            f"{name}: a mask must have the voxel size of the maps, {expected:.4f} Å, found {spacing:.4f} Å. "
            "Resample the mask or correct the voxel size in its header."
        )
    low, high = float(mask.min()), float(mask.max())
    if low < -1e-3 or high > 1.0 + 1e-3:
        raise DataError(f"{name}: mask weights must lie in 0 … 1, found {low:.4g} … {high:.4g}. Is this a density map?")
    if high <= 0:
        raise DataError(f"{name}: a mask must keep something, but all its weights are zero.")
    return np.clip(mask, 0.0, 1.0).astype(np.float32)


def from_file(path: str | Path, size: int, spacing: float) -> np.ndarray:
    """Read a mask and check that it fits maps of the given box edge [voxels] and voxel size [Å].

    Raises:
        DataError: see `check`; also if the file is no map.
    """
    found = read_map(path)
    return check(found.values, found.spacing, size, spacing, str(path))
