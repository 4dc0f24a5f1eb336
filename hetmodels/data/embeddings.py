"""Latents that other programs wrote: cryoDRGN's z.pkl, RECOVAR's latent_coords.npy, cryoSPARC's 3DVA .cs."""

import re
from pathlib import Path

import numpy as np

from hetmodels.data.pickles import load_arrays
from hetmodels.errors import DataError


def read_latents(path: str | Path) -> np.ndarray:
    """Latents of all particles in the order of the file, float64 (N, dims).

    Args:
        path: `z.pkl` or `z.19.pkl` of cryoDRGN, `latent_coords.npy` of RECOVAR or any .npy of numbers, or a .cs file
            with `components_mode_0/value` and so on.

    Raises:
        DataError: if the file is missing or holds no latents.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(
            f"{path}: this is a folder; give the file of the latents in it (z.pkl, latent_coords.npy, .cs)."
        )
    if path.suffix == ".pkl":
        found = load_arrays(path)
    elif path.suffix in (".npy", ".cs"):
        try:
            found = np.load(path, allow_pickle=False)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
        except ValueError as error:
            raise DataError(f"{path}: is no array of numbers ({error}).") from error
    else:
        raise DataError(f"{path}: latents are read from .pkl, .npy and .cs files.")
    if isinstance(found, np.ndarray) and found.dtype.names:
        found = _modes(path, found)
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "fiu" or not found.size:
        what = f"an array {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise DataError(f"{path}: latents are one array of numbers (particles, dims), found {what}.")
    return np.asarray(found, np.float64)


def _modes(path: Path, table: np.ndarray) -> np.ndarray:
    """The coordinates of cryoSPARC's components in the order of their numbers."""
    names = [m for name in table.dtype.names or () if (m := re.fullmatch(r"components_mode_(\d+)/value", name))]
    if not names:
        raise DataError(f"{path}: a 3DVA file has fields components_mode_0/value and so on, this one has none.")
    return np.stack([table[m.string] for m in sorted(names, key=lambda m: int(m[1]))], axis=1)
