"""Soft masks that a family takes: where its maps, or the changes between them, may be."""

import numpy as np

from hetmodels.errors import DataError
from hetmodels.families.protocol import Frame


def read_support(path: str, frame: Frame, who: str) -> np.ndarray:
    """The weights of a mask file in the box of the data, float32 (N, N, N), 0 … 1.

    Args:
        path: an MRC file.
        frame: box and pixel size of the data.
        who: name of the family, for the errors.

    Raises:
        DataError: if the mask has another box or pixel size, weights outside 0 … 1, or keeps nothing.
    """
    from hetmodels.data.maps import read_map

    found = read_map(path)
    if found.values.shape != (frame.size,) * 3 or abs(found.spacing / frame.spacing - 1) > 1e-2:
        raise DataError(
            f"{who}: the mask {path} must have the images' box and pixel size, {frame.size} voxels of "
            f"{frame.spacing:.4g} Å, it has {found.values.shape[0]} of {found.spacing:.4g} Å. Resample it."
        )
    return checked_support(found.values, frame, f"{who}: the mask {path}")


def checked_support(values: np.ndarray, frame: Frame, what: str) -> np.ndarray:
    """Weights that fit the data and lie in 0 … 1, float32 (N, N, N).

    Raises:
        DataError: see `read_support`.
    """
    values = np.asarray(values, np.float32)
    if values.shape != (frame.size,) * 3:
        raise DataError(f"{what} must have {frame.size} voxels along each edge, got {values.shape}.")
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3 and high > 0):
        raise DataError(f"{what}: weights must lie in 0 … 1 and keep something, found {low:.4g} … {high:.4g}.")
    return np.clip(values, 0, 1)
