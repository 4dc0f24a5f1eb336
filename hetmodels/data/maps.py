"""Density maps in MRC/CCP4 files: read in [z, y, x] whatever the file's axis order, written whole or not at all."""

import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hetmodels.errors import DataError

CUBIC = 1e-3  # largest relative difference between voxel edges that counts as cubic


class Map(NamedTuple):
    """A map on cubic voxels.

    Attributes:
        values: density [z, y, x], float32.
        spacing: voxel size [Å]; 0 where the file does not say.
        origin: position of the centre of voxel [0, 0, 0], (x, y, z) [Å].
    """

    values: np.ndarray
    spacing: float
    origin: np.ndarray


class RawMap(NamedTuple):
    """A map on any voxels: values [z, y, x] float32, voxel edges (x, y, z) [Å], origin (x, y, z) [Å]."""

    values: np.ndarray
    voxel: np.ndarray
    origin: np.ndarray


def read_map(path: str | Path) -> Map:
    """Read a map on cubic voxels.

    Raises:
        DataError: if the file is no readable map, has other than finite real values, or its voxels are not cubes.
    """
    values, voxel, origin = read_raw(path)
    if np.ptp(voxel) > CUBIC * voxel.max():
        edges = " x ".join(f"{v:.4g}" for v in voxel)
        raise DataError(
            f"{path}: the voxels must be cubes, these are {edges} Å. Resample the map on cubic voxels first."
        )
    return Map(values, float(voxel[0]), origin)


def read_raw(path: str | Path) -> RawMap:
    """Read any real-valued map; axes are put in [z, y, x] and the origin taken from ORIGIN or, if zero, NSTART.

    Raises:
        DataError: if the file is missing, truncated, not a map, a single image, or has values that are not finite.
    """
    import mrcfile

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what mrcfile warns of is refused below in words
            with mrcfile.open(path, permissive=True) as file:
                header, data = file.header.copy(), None if file.data is None else np.array(file.data)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a readable MRC map ({error}).") from error
    if data is None:
        raise DataError(
            f"{path}: not a readable MRC map: the data are shorter than the header says, or it is no MRC file."
        )
    if data.ndim != 3 or 1 in data.shape:
        raise DataError(f"{path}: a map has three dimensions, this is an image of {' x '.join(map(str, data.shape))}.")
    if np.iscomplexobj(data):
        raise DataError(f"{path}: a map must have real values, this file holds complex ones (mode {int(header.mode)}).")
    values = data.astype(np.float32)
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise DataError(f"{path}: a map must be finite, {bad} voxels are NaN or infinite.")
    return RawMap(*_in_order(values, header))


def _in_order(values: np.ndarray, header: np.recarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values in [z, y, x], voxel edges and origin in (x, y, z), from a file whose axes may be permuted."""
    axes = [int(header.mapc), int(header.mapr), int(header.maps)]
    if sorted(axes) != [1, 2, 3]:
        axes = [1, 2, 3]  # old files leave the fields empty
    starts = np.array([header.nxstart, header.nystart, header.nzstart], float)
    where = [axes.index(axis) for axis in (1, 2, 3)]  # of x, y, z among column, row, section
    values = np.ascontiguousarray(values.transpose([2 - where[2], 2 - where[1], 2 - where[0]]))
    intervals = np.array([header.mx, header.my, header.mz], float)
    cell = np.array([header.cella.x, header.cella.y, header.cella.z], float)
    voxel = np.divide(cell, intervals, out=np.zeros(3), where=intervals > 0)
    origin = np.array([header.origin.x, header.origin.y, header.origin.z], float)
    return values, voxel, origin if origin.any() else starts[where] * voxel


def write_map(path: str | Path, values: np.ndarray, spacing: float, origin: np.ndarray | None = None) -> None:
    """Write a map as MRC mode 2 (float32) through a temporary file, so that no half-written file is left.

    Args:
        path: where to; an existing file is replaced.
        values: density [z, y, x].
        spacing: voxel size [Å].
        origin: position of voxel [0, 0, 0], (x, y, z) [Å]; zero if None, as RELION writes it.

    Raises:
        DataError: if the values are not a finite three-dimensional array.
    """
    import mrcfile

    values = np.asarray(values, np.float32)
    if values.ndim != 3 or not np.isfinite(values).all():
        raise DataError(
            f"{path}: a map to be written must be finite and have three dimensions, got shape {values.shape}."
        )
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with mrcfile.new(temporary, data=values, overwrite=True) as file:
            file.set_volume()
            file.voxel_size = spacing
            if origin is not None:
                file.header.origin = tuple(float(x) for x in origin)
            file.header.label[0] = "hetmodels density map"  # in place of the date, so that equal maps are equal files
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cubed(values: np.ndarray) -> np.ndarray:
    """Pad a map with zeros to a cube, keeping the voxel at n//2 of every axis in the centre."""
    edge = max(values.shape)
    before = [edge // 2 - n // 2 for n in values.shape]
    return np.pad(values, [(b, edge - n - b) for b, n in zip(before, values.shape, strict=True)])
