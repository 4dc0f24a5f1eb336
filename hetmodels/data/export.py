"""Particle tables written back: the input's own rows, fields copied as text, with columns added.

Image paths are copied as they stand. RELION's and cryoSPARC's start from the project folder, wherever the table lies;
a table whose paths start from its own folder must stay there, or be read with --datadir.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hetmodels.data.block import Block, new_block
from hetmodels.data.cs import CsFile, write_array
from hetmodels.data.fields import MM, Metadata, euler_angles, euler_matrix
from hetmodels.data.relion import SIGN, ParticleStar
from hetmodels.data.star import StarFile
from hetmodels.errors import UsageError

INPUT = "_hetInput"  # prefix of a column that keeps what the input said
CS_GROUP = "het/"  # prefix of our columns in a .cs file: _hetClass is het/Class there
_POSE = ("_rlnAngleRot", "_rlnAngleTilt", "_rlnAnglePsi", "_rlnOriginXAngst", "_rlnOriginYAngst")


def write_particles(
    metadata: Metadata,
    path: str | Path,
    columns: Mapping[str, np.ndarray],
    index: np.ndarray | None = None,
) -> list[Path]:
    """Write the input's table back with columns added.

    A STAR input gives a STAR file: every other block and field is copied as text. A cryoSPARC input gives a .cs file
    with its uids, where `_hetClass` is called `het/Class`, and a STAR file beside it. A stack with .pkl files gives
    a STAR file. A column of the input that gets new values keeps the old ones as `_hetInput…`.

    Args:
        metadata: the table as read.
        path: where to, ending in .star or .cs; the other file of a cryoSPARC input gets the same stem.
        columns: values by label (`_hetLatent1`, `_rlnClassNumber`; the underscore may be left out), one entry per
            row written.
        index: rows to write, in this order, (n,); all if None.

    Returns:
        The files written.

    Raises:
        UsageError: if the ending is another, a .cs file is asked for and the input was none, or a column has the
            wrong length.
    """
    path = Path(path)
    rows = np.arange(len(metadata)) if index is None else np.asarray(index, np.int64)
    named = {label if label.startswith("_") else f"_{label}": np.asarray(values) for label, values in columns.items()}
    for label, values in named.items():
        if values.shape != (len(rows),):
            raise UsageError(f"{path}: {label} must have one entry for each of {len(rows)} rows, got {values.shape}.")
    is_cs = isinstance(metadata.table, CsFile)
    if path.suffix not in (".star", ".cs"):
        raise UsageError(f"{path}: a particle table ends in .star or .cs, not {path.suffix or 'in nothing'!r}.")
    if path.suffix == ".cs" and not is_cs:
        raise UsageError(
            f"{path}: {metadata.path} is no cryoSPARC file, so none can be written. End the name in .star."
        )
    written = []
    if isinstance(metadata.table, CsFile):
        write_array(path.with_suffix(".cs"), metadata.table.with_columns(_cs_columns(metadata, named, rows), rows))
        written.append(path.with_suffix(".cs"))
    star = star_table(metadata, path) if not isinstance(metadata.table, ParticleStar) else metadata.table
    block = star.block.edited(None if index is None else rows, with_input_kept(star.block, named, rows))
    star.star.with_block(block).write(path.with_suffix(".star"))
    return [*written, path.with_suffix(".star")]


def with_input_kept(block: Block, columns: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, Sequence[str]]:
    """Columns as text, with `_hetInput…` for those that the block has already."""
    texts: dict[str, Sequence[str]] = {}
    for label, values in columns.items():
        texts[label] = as_text(label, values)
        if label in block and label.startswith("_rln"):
            texts[INPUT + label.removeprefix("_rln")] = list(block.text(label)[rows])
    return texts


def as_text(label: str, values: np.ndarray) -> list[str]:
    """Values as they are written: whole numbers, truth as 0 and 1, seven digits, angles and origins to 1e-6."""
    if values.dtype.kind == "f":
        form = "%.6f" if label in _POSE else "%.7g"
        return [form % value for value in values.tolist()]
    return [str(value) for value in (values.astype(int) if values.dtype.kind == "b" else values).tolist()]


def _cs_columns(metadata: Metadata, columns: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """The same columns by cryoSPARC's names; new poses go to alignments3D, classes count from 0 there."""
    table = metadata.table
    assert isinstance(table, CsFile)
    own = {
        CS_GROUP + label.removeprefix("_het"): values for label, values in columns.items() if label.startswith("_het")
    }
    changed: dict[str, np.ndarray] = {}
    if "_rlnClassNumber" in columns:
        changed["alignments3D/class"] = columns["_rlnClassNumber"] - 1
    if all(label in columns for label in _POSE[:3]):
        from scipy.spatial.transform import Rotation

        rotation = euler_matrix(*(columns[label] for label in _POSE[:3]))
        changed["alignments3D/pose"] = Rotation.from_matrix(np.swapaxes(rotation, 1, 2)).as_rotvec()
    if all(label in columns for label in _POSE[3:]):
        size = table.get("alignments3D/psize_A")
        if size is None:
            size = metadata.pixel
            changed["alignments3D/psize_A"] = np.zeros(len(rows)) if size is None else size[rows]
        if size is not None:
            changed["alignments3D/shift"] = np.stack([columns[n] for n in _POSE[3:]], axis=1) / size[rows, None]
    for name, values in changed.items():
        narrow = np.uint32 if name.endswith("/class") else np.float32
        own[name] = values.astype(narrow)
        if name in (table.array.dtype.names or ()):
            own[f"{CS_GROUP}Input/{name}"] = table.array[name][rows]
    return own


def star_table(metadata: Metadata, path: Path) -> ParticleStar:
    """A RELION 3.1 table of particles that came from another format."""
    particles: dict[str, Sequence[str]] = {
        "_rlnImageName": [f"{row + 1:06d}@{text}" for row, text in zip(metadata.row, metadata.stack, strict=True)]
    }
    if metadata.micrograph is not None and metadata.micrograph is not metadata.stack:
        particles["_rlnMicrographName"] = [str(name) for name in metadata.micrograph]
    particles |= _pose_columns(metadata) | _ctf_columns(metadata)
    whole = {"_rlnRandomSubset": metadata.subset, "_rlnClassNumber": metadata.class_number}
    particles |= {label: as_text(label, values) for label, values in whole.items() if values is not None}
    if metadata.contrast_sign is not None:
        particles[SIGN] = [str(metadata.contrast_sign)] * len(metadata)
    particles["_rlnOpticsGroup"] = as_text("", metadata.group + 1)
    blocks = (new_block("optics", _optics_columns(metadata)), new_block("particles", particles))
    return ParticleStar(StarFile(path, b"# version 30001\n\n", blocks), "particles")


def _pose_columns(metadata: Metadata) -> dict[str, Sequence[str]]:
    columns: dict[str, Sequence[str]] = {}
    if metadata.rotation is not None:
        columns |= {n: as_text(n, v) for n, v in zip(_POSE[:3], euler_angles(metadata.rotation).T, strict=True)}
    if metadata.shift is not None:
        columns |= {n: as_text(n, v) for n, v in zip(_POSE[3:], -metadata.shift.T, strict=True)}
    return columns


def _ctf_columns(metadata: Metadata) -> dict[str, Sequence[str]]:
    """What differs from particle to particle."""
    ctf = metadata.ctf
    if ctf is None:
        return {}
    values = {
        "_rlnDefocusU": ctf["defocus_u"],
        "_rlnDefocusV": ctf["defocus_v"],
        "_rlnDefocusAngle": np.rad2deg(ctf["azimuth"]),
        "_rlnPhaseShift": np.rad2deg(ctf["phase_shift"]),
    }
    if ctf["bfactor"].any():
        values["_rlnCtfBfactor"] = ctf["bfactor"]
    if np.any(ctf["scale"] != 1):
        values["_rlnCtfScalefactor"] = ctf["scale"]
    optics = {"_rlnVoltage": ctf["voltage"], "_rlnSphericalAberration": ctf["spherical"] / MM}
    optics |= {"_rlnAmplitudeContrast": ctf["amplitude"]}
    values |= {label: column for label, column in optics.items() if not _by_group(metadata, column)}
    return {label: [f"{value:.6f}" for value in column.tolist()] for label, column in values.items()}


def _by_group(metadata: Metadata, values: np.ndarray) -> bool:
    """Whether a column is constant within each optics group."""
    first = np.unique(metadata.group, return_index=True)[1]
    return bool(np.all(values == values[first][metadata.group]))


def _optics_columns(metadata: Metadata) -> dict[str, Sequence[str]]:
    first = np.unique(metadata.group, return_index=True)[1]
    columns: dict[str, Sequence[str]] = {
        "_rlnOpticsGroup": [str(i + 1) for i in range(len(first))],
        "_rlnOpticsGroupName": list(metadata.group_names),
    }
    numbers: dict[str, np.ndarray] = {}
    if (ctf := metadata.ctf) is not None:
        numbers |= {"_rlnVoltage": ctf["voltage"], "_rlnSphericalAberration": ctf["spherical"] / MM}
        numbers["_rlnAmplitudeContrast"] = ctf["amplitude"]
        if ctf["beam_tilt"].any():
            numbers |= {f"_rlnBeamTilt{axis}": 1e3 * ctf["beam_tilt"][:, i] for i, axis in enumerate("XY")}
        if np.any(ctf["stretch"] != np.eye(2)):
            numbers |= {f"_rlnMagMat{i}{j}": ctf["stretch"][:, j, i] for i in (0, 1) for j in (0, 1)}
    if metadata.pixel is not None:
        numbers["_rlnImagePixelSize"] = metadata.pixel
    columns |= {label: [f"{value:.7g}" for value in values[first].tolist()] for label, values in numbers.items()}
    if metadata.box is not None:
        columns["_rlnImageSize"] = as_text("", metadata.box[first])
    columns["_rlnImageDimensionality"] = ["2"] * len(first)
    return columns
