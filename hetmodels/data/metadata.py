"""Reading any particle table: `read_metadata` looks at the content, not at the name, and says what it cannot use."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hetmodels.data.cs import open_cs, read_cs
from hetmodels.data.fields import Metadata, Overrides, complete_ctf, optics_groups, require_finite
from hetmodels.data.mrc import read_header
from hetmodels.data.pickles import read_ctf, read_poses
from hetmodels.data.recognise import foreign, particle_block, refuse
from hetmodels.data.relion import ORIGIN_NOTE, PIXEL_NOTE, ParticleStar, read_relion
from hetmodels.data.stacks import find_stacks
from hetmodels.data.star import open_star, read_bytes
from hetmodels.errors import DataError

__all__ = ["Metadata", "Overrides", "read_metadata"]

_MRC = (".mrc", ".mrcs", ".map", ".ccp4", ".st")
_CTF_NAMES = {"defocus_u": "defocus", "voltage": "voltage", "spherical": "Cs", "amplitude": "amplitude contrast"}


def read_metadata(
    path: str | Path,
    *,
    passthrough: str | Path | Sequence[str | Path] | None = None,
    poses: str | Path | None = None,
    ctf: str | Path | None = None,
    datadir: str | Path | None = None,
    overrides: Overrides | None = None,
) -> Metadata:
    """Read a particle table: RELION .star (also gzip), cryoSPARC .cs, or an MRC stack with cryoDRGN's .pkl files.

    Missing poses or CTF are no error here: `pose_reason` and `ctf_reason` say what is missing.

    Args:
        path: the table, or the stack of images.
        passthrough: cryoSPARC files with more columns of the same particles.
        poses: cryoDRGN's poses, which stand before the table's.
        ctf: cryoDRGN's CTF parameters, which stand before the table's.
        datadir: folder of the images; only needed to find the box that the pixel size of `ctf` is scaled to.
        overrides: values that stand before those of all files.

    Raises:
        DataError: if a file is missing, damaged or something else (which is then named), if its columns
            contradict each other, or if poses or CTF are not finite.
    """
    path, overrides = Path(path), overrides or Overrides()
    metadata = _read(path, _listed(passthrough), overrides)
    if ctf is not None:
        metadata = _with_ctf(metadata, Path(ctf), None if datadir is None else Path(datadir), overrides)
    if poses is not None:
        metadata = _with_poses(metadata, Path(poses))
    if overrides.invert:
        metadata = dataclasses.replace(metadata, contrast_sign=-(metadata.contrast_sign or 1))
    if metadata.micrograph is None and len(set(metadata.stack.tolist())) > 1:
        notes = (*metadata.notes, "micrographs are not named: the particles of one stack file are kept together.")
        metadata = dataclasses.replace(metadata, micrograph=metadata.stack, notes=notes)
    return require_finite(dataclasses.replace(metadata, without_ctf=overrides.no_ctf))


def _listed(passthrough: str | Path | Sequence[str | Path] | None) -> list[Path]:
    if passthrough is None:
        return []
    return [Path(passthrough)] if isinstance(passthrough, str | Path) else [Path(p) for p in passthrough]


def _read(path: Path, passthrough: list[Path], overrides: Overrides) -> Metadata:
    head = b""
    if path.is_file():
        with open(path, "rb") as file:
            head = file.read(1024)
    if head[208:211] == b"MAP" or (path.suffix.lower() in _MRC and b"\0" in head):
        return _read_stack(path, head, overrides)
    data = read_bytes(path)
    if data.startswith(b"\x93NUMPY"):
        return read_cs(open_cs(path, data, passthrough), overrides)
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise refuse(path, "a Python pickle", "Give the image stack, and this file with --poses or --ctf.")
    if (error := foreign(path, data)) is not None:
        raise error
    if passthrough:
        raise DataError(f"{path}: only a cryoSPARC .cs file has passthrough files. Leave out --passthrough.")
    star = open_star(path, data)
    return read_relion(star, particle_block(star), overrides)


def _read_stack(path: Path, head: bytes, overrides: Overrides) -> Metadata:
    """An MRC stack: nothing is known of its images but their number and box."""
    if path.suffix.lower() != ".mrcs":
        order = ">" if head[212:213] == b"\x11" else "<"
        words = np.frombuffer(head.ljust(1024, b"\0"), order + "i4", 56)
        if words[22] > 0 and words[2] > 1 or words[0] == words[2] > 1:
            size = " x ".join(str(n) for n in words[:3])
            raise refuse(path, f"a map of {size} voxels", "Give a particle table; an image stack is named .mrcs.")
    header = read_header(path)
    stack = np.empty(header.count, object)
    stack[:] = path.name
    claimed = f"; its header says {header.spacing:.6g} Å" if header.spacing else ""
    return Metadata(
        path=path,
        kind="image stack",
        stack=stack,
        row=np.arange(header.count),
        pixel=None if overrides.pixel is None else np.full(header.count, float(overrides.pixel)),
        box=np.full(header.count, header.box),
        group=np.zeros(header.count, np.int32),
        pose_reason="an image stack says nothing of poses",
        ctf_reason="left out by --no-ctf" if overrides.no_ctf else "an image stack says nothing of the CTF",
        notes=(f"a stack of {header.count} images without a table{claimed}.",),
    )


def _rows(path: Path, count: int, metadata: Metadata) -> None:
    if count != len(metadata):
        raise DataError(
            f"{path}: has {count} rows, but {metadata.path} has {len(metadata)} particles; they must be equal, in the "
            "same order. Give the file that belongs to this table."
        )


def _with_ctf(metadata: Metadata, path: Path, datadir: Path | None, overrides: Overrides) -> Metadata:
    """The table with the CTF and pixel size of a .pkl file."""
    found = read_ctf(path)
    _rows(path, len(found["box"]), metadata)
    box, pixel = found.pop("box"), found.pop("pixel")
    actual = _image_box(metadata, datadir)
    notes = tuple(note for note in metadata.notes if note != PIXEL_NOTE)
    if actual is None:
        notes += (
            f"{path}: pixel size {pixel[0]:.6g} Å is for a box of {box[0]:g} pixels; the images were not found, and if "
            "their box differs, so does their pixel size: give --pixel or --datadir.",
        )
        actual = box.astype(np.int64)
    pixel = pixel * box / actual
    if overrides.pixel is not None:
        pixel = np.full(len(metadata), float(overrides.pixel))
    shift = metadata.shift
    if shift is not None and metadata.pixel is not None and _in_pixels(metadata):
        shift = shift * (pixel / metadata.pixel)[:, None]
    others = {name: values for name, values in (metadata.ctf or {}).items() if name not in found}
    ctf, reason = complete_ctf({**others, **found}, _CTF_NAMES, len(metadata), overrides)
    group, names = metadata.group, metadata.group_names
    if len(names) == 1:
        group, names, _ = optics_groups(found, pixel, len(metadata))
    return dataclasses.replace(
        metadata,
        kind="cryodrgn" if metadata.table is None else metadata.kind,
        pixel=pixel,
        box=np.asarray(actual, np.int64),
        shift=shift,
        group=group,
        group_names=names,
        ctf=ctf,
        ctf_reason=reason,
        notes=notes,
    )


def _in_pixels(metadata: Metadata) -> bool:
    """Whether the table states origins in pixels of the images."""
    return isinstance(metadata.table, ParticleStar) and "_rlnOriginXAngst" not in metadata.table.block


def _image_box(metadata: Metadata, datadir: Path | None) -> np.ndarray | None:
    """Box of the images: of the stack itself, of the first stack that the table names, or as the table declares."""
    if metadata.table is None:
        return metadata.box
    try:
        first = find_stacks([str(metadata.stack[0])], metadata.path.parent, datadir)[0]
    except DataError:
        return metadata.box
    return np.full(len(metadata), read_header(first).box)


def _with_poses(metadata: Metadata, path: Path) -> Metadata:
    """The table with the poses of a .pkl file, whose origins are fractions of the box."""
    rotation, origin = read_poses(path)
    _rows(path, len(rotation), metadata)
    kind = "cryodrgn" if metadata.table is None else metadata.kind
    notes = tuple(note for note in metadata.notes if note != ORIGIN_NOTE)
    shift = np.zeros((len(metadata), 2))
    if origin is not None and origin.any():
        if metadata.box is None or metadata.pixel is None:
            lacks = "box" if metadata.box is None else "pixel size"
            raise DataError(
                f"{path}: origins are fractions of the box, and the {lacks} of the images is not known. Give the CTF "
                "file (--ctf), or --pixel for a table that declares its box."
            )
        shift = -origin * (metadata.box * metadata.pixel)[:, None]
    return dataclasses.replace(metadata, kind=kind, rotation=rotation, shift=shift, pose_reason="", notes=notes)
