"""cryoSPARC's particle files (.cs: numpy structured arrays, one row per particle) as `Metadata`."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hetmodels.data.fields import MM, Metadata, Overrides, complete_ctf, optics_groups
from hetmodels.data.recognise import refuse
from hetmodels.errors import DataError
from hetmodels.run_directory import replacing

_NAMES = {
    "defocus_u": "ctf/df1_A",
    "defocus_v": "ctf/df2_A",
    "azimuth": "ctf/df_angle_rad",
    "voltage": "ctf/accel_kv",
    "spherical": "ctf/cs_mm",
    "amplitude": "ctf/amp_contrast",
    "phase_shift": "ctf/phase_shift_rad",
    "bfactor": "ctf/bfactor",
}


@dataclasses.dataclass(frozen=True, eq=False)
class CsFile:
    """The rows of a .cs file and of its passthrough files, in one order.

    Attributes:
        path: the file.
        array: its own columns, written back as they are.
        joined: columns that only passthrough files have, by name.
    """

    path: Path
    array: np.ndarray
    joined: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.array)

    @property
    def names(self) -> list[str]:
        """All column names."""
        return [*(self.array.dtype.names or ()), *self.joined]

    def get(self, name: str) -> np.ndarray | None:
        """A column, None if there is none; text is decoded to object, floats are widened to float64."""
        if name in (self.array.dtype.names or ()):
            values = self.array[name]
        elif name in self.joined:
            values = self.joined[name]
        else:
            return None
        if values.dtype.kind == "S":
            distinct, place = np.unique(values, return_inverse=True)
            return np.array([text.decode("utf-8", "replace") for text in distinct.tolist()], object)[place]
        if values.dtype.kind == "U":
            return values.astype(object)
        return values.astype(np.float64) if values.dtype.kind == "f" else values

    def with_columns(self, columns: Mapping[str, np.ndarray], index: np.ndarray | None = None) -> np.ndarray:
        """The file's own array, or some rows of it, with columns added or replaced.

        Args:
            columns: values by column name, one entry per row written.
            index: rows to keep, (n,); all if None.
        """
        array = self.array if index is None else self.array[index]
        new = {name: np.asarray(values) for name, values in columns.items()}
        new = {name: values.astype(np.uint32) if values.dtype.kind == "b" else values for name, values in new.items()}
        kept = [(name, array.dtype[name]) for name in array.dtype.names or ()]
        added = [(name, v.dtype.str, v.shape[1:]) for name, v in new.items() if name not in (array.dtype.names or ())]
        out = np.empty(len(array), np.dtype([*kept, *added]))
        for name in out.dtype.names or ():
            out[name] = new[name] if name in new else array[name]
        return out


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .cs file in one step."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def open_cs(path: Path, data: bytes, passthrough: Sequence[Path] = ()) -> CsFile:
    """Read a .cs file and add the columns of passthrough files by particle uid.

    Raises:
        DataError: if a file is no structured array, or a particle is not in the passthrough file.
    """
    array = _structured(path, data)
    joined: dict[str, np.ndarray] = {}
    for other in passthrough:
        if not Path(other).is_file():
            raise DataError(f"{other}: there is no such passthrough file.")
        extra = _structured(other, Path(other).read_bytes())
        for name in (array.dtype.names, extra.dtype.names):
            if "uid" not in (name or ()):
                raise DataError(f"{other}: passthrough columns are joined by uid, and one of the files has no uid.")
        order = np.argsort(extra["uid"])
        place = order[np.searchsorted(extra["uid"][order], array["uid"]) % max(1, len(order))] if len(order) else order
        found = len(order) > 0 and extra["uid"][place] == array["uid"]
        lost = len(array) - int(np.sum(found))
        if lost:
            raise DataError(
                f"{other}: {lost} of the {len(array)} particles of {path} are not in this passthrough file. "
                "Give the passthrough file of the same job."
            )
        known = {*(array.dtype.names or ()), *joined}
        joined |= {name: extra[name][place] for name in extra.dtype.names or () if name not in known}
    return CsFile(path, array, joined)


def _structured(path: Path, data: bytes) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"{path}: a .cs file must be a numpy array without Python objects, this one is not ({error})."
        ) from error
    if array.dtype.names is None:
        raise refuse(path, f"a plain numpy array of shape {array.shape}")
    return array


def read_cs(cs: CsFile, overrides: Overrides) -> Metadata:
    """The particles of a .cs file.

    Raises:
        DataError: if there are none, or the file describes something else.
    """
    _require_particles(cs)
    count = len(cs)
    found = _ctf(cs)
    ctf, ctf_reason = complete_ctf(found, _NAMES, count, overrides)
    pixel, shape = cs.get("blob/psize_A"), cs.get("blob/shape")
    if overrides.pixel is not None:
        pixel = np.full(count, float(overrides.pixel))
    rotation, shift, reason, pose_notes = _pose(cs)
    group, names, note = _group(cs, found if ctf is None else ctf, pixel)
    paths, row = cs.get("blob/path"), cs.get("blob/idx")
    assert paths is not None and row is not None
    micrograph = cs.get("location/micrograph_path")
    if micrograph is None or not any(micrograph):
        number = cs.get("location/micrograph_uid")
        micrograph = None if number is None else number.astype(str).astype(object)
    half, classes, uid = cs.get("alignments3D/split"), cs.get("alignments3D/class"), cs.get("uid")
    return Metadata(
        path=cs.path,
        kind="cryosparc",
        stack=_stripped(paths),
        row=row.astype(np.int64),
        rotation=rotation,
        shift=shift,
        pixel=pixel,
        box=None if shape is None else shape[:, 0].astype(np.int64),
        group=group,
        group_names=names,
        ctf=ctf,
        micrograph=None if micrograph is None else _stripped(micrograph),
        subset=None if half is None or not np.isin(half, (0, 1)).all() else half.astype(np.int64) + 1,
        class_number=None if classes is None else classes.astype(np.int64) + 1,
        uid=uid,
        contrast_sign=_sign(cs),
        pose_reason=reason,
        ctf_reason=ctf_reason,
        notes=(*([note] if note else []), *pose_notes, *_ignored(cs, pixel)),
        table=cs,
    )


def _require_particles(cs: CsFile) -> None:
    missing = [name for name in ("blob/path", "blob/idx") if name not in cs.names]
    groups = sorted({name.split("/")[0] for name in cs.names if "/" in name})
    volumes = [name for name in groups if f"{name}/path" in cs.names and _is_volume(cs, name)]
    if volumes:
        raise refuse(
            cs.path, f"a cryoSPARC file that describes a volume ({volumes[0]})", "Give the particles' .cs file."
        )
    if missing and len(cs) and "micrograph_blob/path" in cs.names:
        raise refuse(cs.path, "a cryoSPARC file of micrographs", "Give the particles' .cs file.")
    if not len(cs):
        raise DataError(
            f"{cs.path}: a cryoSPARC file with {len(cs.names)} columns and 0 rows: there are no particles; at least "
            "one is needed. Take the output of a job that kept some."
        )
    if missing:
        raise DataError(
            f"{cs.path}: a particle file needs {' and '.join(missing)}; it has {', '.join(groups) or 'no columns'}. If "
            "this is a passthrough file, give the particles' own file and this one with --passthrough."
        )


def _is_volume(cs: CsFile, name: str) -> bool:
    shape = cs.get(f"{name}/shape")
    return shape is not None and shape.ndim == 2 and shape.shape[1] == 3 and "blob/path" not in cs.names


def _stripped(paths: np.ndarray) -> np.ndarray:
    """Path texts without the > that marks files of the project."""
    clean = {text: text.removeprefix(">") for text in set(paths.tolist())}
    stripped = np.empty(len(paths), object)
    stripped[:] = [clean[text] for text in paths.tolist()]
    return stripped


def _pose(cs: CsFile) -> tuple[np.ndarray | None, np.ndarray | None, str, list[str]]:
    """A = exp([pose]x)^T and t = -shift times the pixel size of the alignment."""
    vector, origin = cs.get("alignments3D/pose"), cs.get("alignments3D/shift")
    if vector is None or origin is None:
        flat = "alignments2D/pose" in cs.names
        why = (
            "only 2-D alignments (alignments2D), as 2-D classification leaves them" if flat else "no alignments at all"
        )
        return None, None, f"the file lacks alignments3D/pose and /shift; it has {why}", []
    from scipy.spatial.transform import Rotation

    rotation = np.full((len(cs), 3, 3), np.nan)
    finite = np.isfinite(vector).all(1)
    rotation[finite] = np.swapaxes(Rotation.from_rotvec(vector[finite]).as_matrix(), 1, 2)
    size = cs.get("alignments3D/psize_A")
    size = cs.get("blob/psize_A") if size is None else size
    if size is None:
        return None, None, "shifts are in pixels, and the file has no alignments3D/psize_A", []
    return rotation, -origin * size[:, None], "", []


def _ctf(cs: CsFile) -> dict[str, np.ndarray]:
    found = {name: cs.get(column) for name, column in _NAMES.items()}
    ctf = {name: values for name, values in found.items() if values is not None}
    if "spherical" in ctf:
        ctf["spherical"] = ctf["spherical"] * MM
    tilt, magnification = cs.get("ctf/tilt_A"), cs.get("ctf/anisomag")
    if tilt is not None and "spherical" in ctf and tilt.any() and np.all(ctf["spherical"] > 0):
        ctf["beam_tilt"] = np.arcsin(tilt / ctf["spherical"][:, None])
    if magnification is not None:  # stored as the difference from 1, for frequencies
        ctf["stretch"] = np.eye(2) + np.swapaxes(magnification.reshape(-1, 2, 2), 1, 2)
    return ctf


def _group(
    cs: CsFile, ctf: Mapping[str, np.ndarray], pixel: np.ndarray | None
) -> tuple[np.ndarray, tuple[str, ...], str]:
    number = cs.get("ctf/exp_group_id")
    number = cs.get("location/exp_group_id") if number is None else number
    if number is None:
        return optics_groups(ctf, pixel, len(cs))
    distinct, group = np.unique(number, return_inverse=True)
    return group.astype(np.int32), tuple(f"exposureGroup{n}" for n in distinct.tolist()), ""


def _sign(cs: CsFile) -> int | None:
    sign = cs.get("blob/sign")
    if sign is None:
        return None
    if not (np.all(sign == sign[0]) and abs(sign[0]) == 1):
        raise DataError(
            f"{cs.path}: blob/sign must be 1 or -1 and the same for all particles, found {np.unique(sign).tolist()}. "
            "Split the file."
        )
    return int(sign[0])


def _ignored(cs: CsFile, pixel: np.ndarray | None) -> list[str]:
    """Columns of cryoSPARC's image model that this one does not have, with the phase they leave out at Nyquist."""
    notes = []
    alpha = cs.get("alignments3D/alpha")
    if alpha is not None and not np.allclose(alpha, 1, atol=1e-3):
        notes.append(
            f"ignored: alignments3D/alpha, scales of the particles ({alpha.min():.3g} … {alpha.max():.3g}); the model "
            "infers contrast itself (no phase error)."
        )
    voltage = cs.get("ctf/accel_kv")
    if pixel is None or voltage is None:
        return notes
    volts = 1e3 * voltage
    lam, s = 12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts)), 1 / (2 * pixel)
    phases = {
        "ctf/shift_A": ("image shift", 2 * np.pi * s),
        "ctf/trefoil_A": ("trefoil", 2 * np.pi / 3 * lam**2 * s**3),
        "ctf/tetra_A": ("fourth-order aberrations", 2 * np.pi * lam**3 * s**4),
    }
    for name, (what, factor) in phases.items():
        values = cs.get(name)
        if values is not None and values.any():
            worst = float((np.linalg.norm(values, axis=1) * factor).max())
            notes.append(f"ignored: {name} ({what}); phase error at Nyquist up to {worst:.3g} rad.")
    return notes
