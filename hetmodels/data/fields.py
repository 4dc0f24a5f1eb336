"""What any particle table says, in one form: `Metadata`, and the pieces that all readers share."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from hetmodels.errors import DataError

if TYPE_CHECKING:
    from hetmodels.data.cs import CsFile
    from hetmodels.data.relion import ParticleStar

    Origin: TypeAlias = ParticleStar | CsFile | None

MM = 1e7  # Å
SCALARS = ("defocus_u", "defocus_v", "azimuth", "voltage", "spherical", "amplitude", "phase_shift", "bfactor", "scale")


@dataclasses.dataclass(frozen=True)
class Overrides:
    """Values that replace those of a table for all its particles.

    Attributes:
        pixel: pixel size [Å].
        voltage: acceleration voltage [kV].
        cs: spherical aberration [mm].
        amplitude_contrast: 0 to 1.
        invert: change the contrast sign.
        no_ctf: the images have no CTF.
    """

    pixel: float | None = None
    voltage: float | None = None
    cs: float | None = None
    amplitude_contrast: float | None = None
    invert: bool = False
    no_ctf: bool = False

    def optics(self) -> dict[str, float]:
        """The given values by their names in `Metadata.ctf`."""
        cs = None if self.cs is None else self.cs * MM
        given = {"voltage": self.voltage, "spherical": cs, "amplitude": self.amplitude_contrast}
        return {name: float(value) for name, value in given.items() if value is not None}


@dataclasses.dataclass(frozen=True, eq=False)
class Metadata:
    """All rows of a particle table, whatever program wrote it; None where the table does not say.

    Attributes:
        path: the file.
        kind: the program and format, in words.
        stack: path text of each image's file, object (N,).
        row: number of the image in that file from 0, int64 (N,).
        rotation: RELION matrices A, float64 (N, 3, 3).
        shift: content shift t = -origin [Å], float64 (N, 2).
        pixel: pixel size [Å], (N,).
        box: image edge in pixels as the table declares it, int64 (N,).
        group: optics group from 0, int32 (N,).
        group_names: a name for each group.
        ctf: CTF parameters by the field names of `hetmodels.imaging.ctf.Ctf`, N rows each.
        micrograph: name of the micrograph, or of what else keeps particles together in splits, object (N,).
        subset: half set 1 or 2, int64 (N,).
        class_number: class from 1, int64 (N,).
        uid: cryoSPARC's particle numbers, uint64 (N,).
        phase_flipped: phases were flipped.
        premultiplied: images were multiplied by their CTF.
        contrast_sign: factor on the images that makes protein bright; None if the table does not say.
        without_ctf: the user said that the images have no CTF.
        pose_reason: why `rotation` or `shift` is None.
        ctf_reason: why `ctf` is None.
        notes: what a user should know about the table, in sentences.
        table: the table as read, for writing it back.
    """

    path: Path
    kind: str
    stack: np.ndarray
    row: np.ndarray
    rotation: np.ndarray | None = None
    shift: np.ndarray | None = None
    pixel: np.ndarray | None = None
    box: np.ndarray | None = None
    group: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    group_names: tuple[str, ...] = ("opticsGroup1",)
    ctf: dict[str, np.ndarray] | None = None
    micrograph: np.ndarray | None = None
    subset: np.ndarray | None = None
    class_number: np.ndarray | None = None
    uid: np.ndarray | None = None
    phase_flipped: bool = False
    premultiplied: bool = False
    contrast_sign: int | None = None
    without_ctf: bool = False
    pose_reason: str = ""
    ctf_reason: str = ""
    notes: tuple[str, ...] = ()
    table: "Origin" = None

    def __len__(self) -> int:
        return len(self.row)


def euler_matrix(rot: np.ndarray, tilt: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """RELION's matrices A, float64 (N, 3, 3), from angles in degrees; NaN angles give NaN matrices."""
    from scipy.spatial.transform import Rotation

    angles = np.stack([rot, tilt, psi], axis=1)
    finite = np.isfinite(angles).all(1)
    matrices = np.full((len(angles), 3, 3), np.nan)
    if finite.any():
        found = Rotation.from_euler("ZYZ", angles[finite], degrees=True).as_matrix()
        matrices[finite] = np.swapaxes(found, 1, 2)
    return matrices


def euler_angles(rotation: np.ndarray) -> np.ndarray:
    """RELION's rot, tilt and psi in degrees, (N, 3), of matrices A; at tilt 0 and 180 psi carries the whole turn."""
    tilt = np.arctan2(np.hypot(rotation[:, 2, 0], rotation[:, 2, 1]), rotation[:, 2, 2])
    rot = np.where(np.sin(tilt) > 1e-9, np.arctan2(rotation[:, 2, 1], rotation[:, 2, 0]), 0)
    c, s = np.cos(rot), np.sin(rot)
    psi = np.arctan2(c * rotation[:, 0, 1] - s * rotation[:, 0, 0], c * rotation[:, 1, 1] - s * rotation[:, 1, 0])
    return np.rad2deg(np.stack([rot, tilt, psi], axis=1))


def complete_ctf(
    found: Mapping[str, np.ndarray], names: Mapping[str, str], count: int, overrides: Overrides
) -> tuple[dict[str, np.ndarray] | None, str]:
    """CTF parameters of all rows, or why there are none.

    Args:
        found: what the table has, by field name, units converted, N rows each.
        names: the table's own names of the necessary fields defocus_u, voltage, spherical and amplitude.
        count: N.
        overrides: values that stand before the table's.

    Returns:
        The parameters and '', or None and the reason.
    """
    if overrides.no_ctf:
        return None, "left out by --no-ctf"
    given = {name: np.full(count, value) for name, value in overrides.optics().items()}
    values = {**found, **given}
    missing = [name for name in ("defocus_u", "voltage", "spherical", "amplitude") if name not in values]
    if missing:
        cures = {"voltage": "--voltage", "spherical": "--cs", "amplitude": "--amplitude-contrast"}
        listed = ", ".join(f"{names[m]} ({cures[m]} gives it)" if m in cures else names[m] for m in missing)
        return None, f"the table lacks {listed}"
    values.setdefault("defocus_v", values["defocus_u"])
    defaults = {"azimuth": 0.0, "phase_shift": 0.0, "bfactor": 0.0, "scale": 1.0}
    for name, value in defaults.items():
        values.setdefault(name, np.full(count, value))
    values.setdefault("beam_tilt", np.zeros((count, 2)))
    values.setdefault("odd", np.zeros((count, 0)))
    values.setdefault("even", np.zeros((count, 0)))
    values.setdefault("stretch", np.broadcast_to(np.eye(2), (count, 2, 2)))
    return values, ""


def optics_groups(
    ctf: Mapping[str, np.ndarray], pixel: np.ndarray | None, count: int
) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Groups of a table without optics groups: one for each voltage, Cs, amplitude contrast and pixel size.

    A Cs that differs from row to row was refined per particle; it does not tell groups apart.

    Returns:
        Group of each row from 0, int32 (N,); their names; a sentence for the user or ''.
    """
    columns = {name: ctf[name] for name in ("voltage", "amplitude", "spherical") if name in ctf}
    if pixel is not None:
        columns["pixel"] = pixel
    note = ""
    if "spherical" in columns and 1 < len(np.unique(columns["spherical"])) > count // 10:
        del columns["spherical"]
        note = "Cs differs from row to row: it is used as it stands, and does not tell optics groups apart."
    if not columns or not count:
        return np.zeros(count, np.int32), ("opticsGroup1",), note
    rows = np.stack([np.broadcast_to(values, count) for values in columns.values()], axis=1)
    _, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # in order of appearance
    return rank[group].astype(np.int32), tuple(f"opticsGroup{i + 1}" for i in range(len(first))), note


def half_sets(values: np.ndarray, name: str) -> tuple[np.ndarray | None, str]:
    """Half sets 1 and 2, or None and a sentence if the column holds something else."""
    if np.isin(values, (1, 2)).all():
        return values.astype(np.int64), ""
    wrong = int((~np.isin(values, (1, 2))).sum())
    return None, f"{name} must be 1 or 2, it is not in {wrong} rows: half sets are made anew."


def require_finite(metadata: Metadata) -> Metadata:
    """The same table, if all poses and CTF parameters are finite numbers.

    Raises:
        DataError: naming the first rows where they are not.
    """
    arrays = {"angles": metadata.rotation, "origins": metadata.shift, "pixel size": metadata.pixel}
    arrays |= {f"CTF parameter {name}": values for name, values in (metadata.ctf or {}).items()}
    for name, values in arrays.items():
        if values is None:
            continue
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))
        if len(bad):
            listed = ", ".join(str(row) for row in bad[:5]) + (", …" if len(bad) > 5 else "")
            raise DataError(
                f"{metadata.path}: poses and CTF must be finite numbers; {name} is NaN or infinite in {len(bad)} of "
                f"{len(metadata)} rows (row {listed}, counted from 0). Remove these rows, or estimate them again."
            )
    return metadata
