"""cryoDRGN's .pkl files of poses and CTF, read by an unpickler that makes numpy arrays and nothing else."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from hetmodels.data.fields import MM
from hetmodels.errors import DataError

_COLUMNS = ("box", "pixel", "defocus_u", "defocus_v", "azimuth", "voltage", "spherical", "amplitude", "phase_shift")
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}


class _ArraysOnly(pickle.Unpickler):
    """Knows the constructors of numpy arrays and no other name, so that nothing in a file can be executed."""

    def find_class(self, module: str, name: str) -> Any:
        core = module.replace("numpy.core", "numpy._core")
        if (core, name) in _ALLOWED:
            return super().find_class(core, name)
        if (module, name) == ("_codecs", "encode"):  # bytes in old protocols
            return _latin
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _latin(text: str, encoding: str) -> bytes:
    return text.encode("latin-1")


def load_arrays(path: str | Path) -> Any:
    """The content of a .pkl file: an array, or a tuple or list of arrays.

    Raises:
        DataError: if the file is missing, no pickle, or holds anything else.
    """
    try:
        data = Path(path).read_bytes()
        content = _ArraysOnly(io.BytesIO(data), encoding="latin-1").load()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: a .pkl file of poses or CTF may hold numpy arrays only, this one is refused ({error}). "
            "Give the file that cryoDRGN's parse_pose or parse_ctf wrote."
        ) from error
    parts = content if isinstance(content, tuple | list) else [content]
    if not all(isinstance(part, np.ndarray) and part.dtype.kind in "fiu" for part in parts) or not len(parts):
        raise DataError(f"{path}: a .pkl file of poses or CTF holds arrays of numbers, found {type(content).__name__}.")
    return content


def read_poses(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Matrices A, (N, 3, 3), and origins as fractions of the box, (N, 2) or None.

    Raises:
        DataError: if the arrays have other shapes, or the matrices are no rotations.
    """
    content = load_arrays(path)
    parts = content if isinstance(content, tuple | list) else [content]
    shapes = [part.shape for part in parts]
    count = shapes[0][0] if shapes[0] else 0
    if len(parts) > 2 or shapes[0] != (count, 3, 3) or (len(parts) == 2 and shapes[1] != (count, 2)):
        hint = " It looks like a CTF file: give it with --ctf." if shapes[0][1:] == (9,) else ""
        raise DataError(
            f"{path}: poses are arrays of shapes (N, 3, 3) and (N, 2), found {', '.join(map(str, shapes))}.{hint}"
        )
    rotation = np.asarray(parts[0], np.float64)
    error = np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max(initial=0, axis=(1, 2))
    bad = np.flatnonzero((error > 1e-3) | (np.linalg.det(rotation) < 0))
    if len(bad):
        raise DataError(f"{path}: poses must be rotation matrices, row {bad[0]} holds {rotation[bad[0]].tolist()}.")
    return rotation, np.asarray(parts[1], np.float64) if len(parts) == 2 else None


def read_ctf(path: str | Path) -> dict[str, np.ndarray]:
    """CTF parameters by field name, with `box` and `pixel` [Å] of the images they were made for, (N,) each.

    Raises:
        DataError: if the file holds no array of nine columns.
    """
    content = load_arrays(path)
    if not isinstance(content, np.ndarray) or content.ndim != 2 or content.shape[1] != len(_COLUMNS):
        what = f"an array {content.shape}" if isinstance(content, np.ndarray) else f"{len(content)} arrays"
        raise DataError(f"{path}: CTF parameters are one array (N, 9) of numbers, found {what}.")
    columns = dict(zip(_COLUMNS, np.asarray(content, np.float64).T, strict=True))
    for name in ("azimuth", "phase_shift"):
        columns[name] = np.deg2rad(columns[name])
    columns["spherical"] = columns["spherical"] * MM
    return columns
