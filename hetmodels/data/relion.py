"""RELION's particle tables, versions 1 to 5, as `Metadata`.

A value is taken from the particle's own row if the table has that column, else from its optics group.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np

from hetmodels.data.block import Block
from hetmodels.data.fields import (
    MM,
    Metadata,
    Overrides,
    complete_ctf,
    euler_matrix,
    half_sets,
    optics_groups,
)
from hetmodels.data.star import StarFile
from hetmodels.errors import DataError

SIGN = "_hetContrastSign"  # written into tables made from formats that know the sign; RELION's do not
PIXEL_NOTE = (
    "pixel size from _rlnDetectorPixelSize and _rlnMagnification, which is often not updated when images are binned; "
    "--pixel overrides it."
)
ORIGIN_NOTE = "there are no origins: particles are taken as centred."
_NUMBERS = (
    *("_rlnAngleRot", "_rlnAngleTilt", "_rlnAnglePsi", "_rlnOriginXAngst", "_rlnOriginYAngst"),
    *("_rlnOriginX", "_rlnOriginY", "_rlnDefocusU", "_rlnDefocusV", "_rlnDefocusAngle", "_rlnVoltage"),
    *("_rlnSphericalAberration", "_rlnAmplitudeContrast", "_rlnPhaseShift", "_rlnCtfBfactor", "_rlnCtfScalefactor"),
    *("_rlnImagePixelSize", "_rlnPixelSize", "_rlnDetectorPixelSize", "_rlnMagnification", "_rlnImageSize"),
    *("_rlnBeamTiltX", "_rlnBeamTiltY", "_rlnMagMat00", "_rlnMagMat01", "_rlnMagMat10", "_rlnMagMat11"),
    *("_rlnCtfDataAreCtfPremultiplied", "_rlnCtfDataArePhaseFlipped", "_rlnRandomSubset", "_rlnClassNumber"),
    *("_rlnOpticsGroup", "_rlnNormCorrection", SIGN),
)
_TEXTS = (
    *("_rlnImageName", "_rlnMicrographName", "_rlnGroupName", "_rlnTomoName"),
    *("_rlnOddZernike", "_rlnEvenZernike", "_rlnOpticsGroupName", "_rlnMtfFileName"),
)
_CTF = {
    "defocus_u": ("_rlnDefocusU", 1.0),
    "defocus_v": ("_rlnDefocusV", 1.0),
    "azimuth": ("_rlnDefocusAngle", np.pi / 180),
    "voltage": ("_rlnVoltage", 1.0),
    "spherical": ("_rlnSphericalAberration", MM),
    "amplitude": ("_rlnAmplitudeContrast", 1.0),
    "phase_shift": ("_rlnPhaseShift", np.pi / 180),
    "bfactor": ("_rlnCtfBfactor", 1.0),
    "scale": ("_rlnCtfScalefactor", 1.0),
}


@dataclasses.dataclass(frozen=True, eq=False)
class ParticleStar:
    """A STAR file and the name of its particle block, kept for writing the table back."""

    star: StarFile
    name: str

    @property
    def block(self) -> Block:
        """The particle block."""
        found = self.star.find(self.name)
        assert found is not None
        return found


class Columns:
    """Columns of the particle rows, from their own table or their optics group."""

    def __init__(self, star: StarFile, block: Block) -> None:
        self.path, self.size = star.path, len(block)
        optics = star.find("optics")
        self.optics = optics if optics is not None and optics is not block and "_rlnOpticsGroup" in optics else None
        self._own, self.shared = _read(block), {} if self.optics is None else _read(self.optics)
        self.group = None if self.optics is None else self._groups()

    def _groups(self) -> np.ndarray:
        numbers = self.shared["_rlnOpticsGroup"]
        if len(np.unique(numbers)) < len(numbers) or not len(numbers):
            raise DataError(f"{self.path}: the optics table must have each group once; found {numbers.tolist()}.")
        if "_rlnOpticsGroup" not in self._own:
            if len(numbers) == 1:
                return np.zeros(self.size, np.int32)
            raise DataError(
                f"{self.path}: there are {len(numbers)} optics groups, but no _rlnOpticsGroup of particles."
            )
        order = np.argsort(numbers)
        wanted = self._own["_rlnOpticsGroup"]
        place = order[np.minimum(np.searchsorted(numbers[order], wanted), len(numbers) - 1)]
        lost = np.flatnonzero(numbers[place] != wanted)
        if len(lost):
            raise DataError(
                f"{self.path}: row {lost[0]} belongs to optics group {wanted[lost[0]]:g}, which the optics table does "
                f"not have ({len(lost)} such rows). Add the group, or correct _rlnOpticsGroup."
            )
        return place.astype(np.int32)

    def get(self, label: str) -> np.ndarray | None:
        """A column with one entry per particle, None if neither table has it."""
        if label in self._own:
            return self._own[label]
        return self.shared[label][self.group] if label in self.shared else None

    def pair(self, *labels: str) -> np.ndarray | None:
        """Columns side by side, (N, labels), None if one is missing."""
        found = [self.get(label) for label in labels]
        return None if any(f is None for f in found) else np.stack([f for f in found if f is not None], axis=1)

    def flag(self, label: str) -> bool:
        """A yes-or-no column, which must say the same of all particles."""
        values = self.get(label)
        if values is None or not len(values):
            return False
        if not (np.all(values != 0) or np.all(values == 0)):
            raise DataError(
                f"{self.path}: {label} must be the same for all particles, it is set for {int((values != 0).sum())} "
                f"of {self.size}. Split the table."
            )
        return bool(values[0])


def _read(block: Block) -> dict[str, np.ndarray]:
    return block.columns(
        text=[label for label in _TEXTS if label in block], numbers=[label for label in _NUMBERS if label in block]
    )


def read_relion(star: StarFile, block: Block, overrides: Overrides) -> Metadata:
    """The particle table of a STAR file.

    Args:
        star: the file.
        block: its particle block, which has _rlnImageName.
        overrides: values that stand before the table's.

    Raises:
        DataError: if columns contradict each other or hold what they must not.
    """
    columns = Columns(star, block)
    images = columns.get("_rlnImageName")
    assert images is not None
    stack, row = image_names(images, star.path)
    notes: list[str] = []
    pixel, note = _pixel(columns, overrides)
    notes += [note] if note else []
    found = _ctf(columns)
    ctf, ctf_reason = complete_ctf(found, {n: label for n, (label, _) in _CTF.items()}, len(block), overrides)
    rotation, shift, pose_reason, note = _pose(columns, pixel)
    notes += [note] if note else []
    group, names, note = _group(columns, found if ctf is None else ctf, pixel)
    notes += [note] if note else []
    subset, note = None, ""
    if (values := columns.get("_rlnRandomSubset")) is not None:
        subset, note = half_sets(values, "_rlnRandomSubset")
    notes += [note] if note else []
    micrograph, note = _micrograph(columns)
    notes += [note] if note else []
    sign = columns.get(SIGN)
    box, classes = columns.get("_rlnImageSize"), columns.get("_rlnClassNumber")
    return Metadata(
        path=star.path,
        kind=_kind(star, columns),
        stack=stack,
        row=row,
        rotation=rotation,
        shift=shift,
        pixel=pixel,
        box=None if box is None else box.astype(np.int64),
        group=group,
        group_names=names,
        ctf=ctf,
        micrograph=micrograph,
        subset=subset,
        class_number=None if classes is None else classes.astype(np.int64),
        phase_flipped=columns.flag("_rlnCtfDataArePhaseFlipped"),
        premultiplied=columns.flag("_rlnCtfDataAreCtfPremultiplied"),
        contrast_sign=None if sign is None else (-1 if sign[0] < 0 else 1),
        pose_reason=pose_reason,
        ctf_reason=ctf_reason,
        notes=(*notes, *_ignored(columns)),
        table=ParticleStar(star, block.name),
    )


def image_names(names: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`000012@stack.mrcs` -> path texts, object (N,), and image numbers from 0, int64 (N,); no number means the first.

    Raises:
        DataError: if what stands before the @ is no whole number.
    """
    seen: dict[str, str] = {}
    stack, row = np.empty(len(names), object), np.zeros(len(names), np.int64)
    for i, name in enumerate(names):
        number, at, text = name.partition("@")
        if not at:
            number, text = "1", name
        try:
            row[i] = int(number) - 1
        except ValueError:
            raise DataError(
                f"{path}: _rlnImageName must be NUMBER@STACK with a whole number, row {i} holds {name!r}."
            ) from None
        stack[i] = seen.setdefault(text, text)
    return stack, row


def _kind(star: StarFile, columns: Columns) -> str:
    text = star.preamble + b"".join(block.tail for block in star.blocks)
    version = re.search(rb"# version (\d)\d{4}", text)
    old = re.search(rb"RELION[^\n]*version[ :]*(\d+)\.(\d+)", text)
    if columns.optics is not None:
        if version is None:
            return "relion 3.1+"
        return "relion 3.1" if version[1] == b"3" else f"relion {version[1].decode()}"
    return f"relion {old[1].decode()}.{old[2].decode()}" if old else "relion 3.0 or older"


def _pixel(columns: Columns, overrides: Overrides) -> tuple[np.ndarray | None, str]:
    """Pixel size of the images [Å], and a sentence or ''."""
    if overrides.pixel is not None:
        return np.full(columns.size, float(overrides.pixel)), ""
    for label in ("_rlnImagePixelSize", "_rlnPixelSize"):
        if (values := columns.get(label)) is not None:
            return values, ""
    detector, magnification = columns.get("_rlnDetectorPixelSize"), columns.get("_rlnMagnification")
    if detector is not None and magnification is not None:
        if np.any(magnification == 0):
            raise DataError(f"{columns.path}: _rlnMagnification must not be 0. Give the pixel size with --pixel.")
        note = (
            "pixel size from _rlnDetectorPixelSize and _rlnMagnification, which is often not updated when images are "
        )
        return detector * 1e4 / magnification, note + "binned; --pixel overrides it."
    return None, ""


def _pose(columns: Columns, pixel: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None, str, str]:
    """Matrices, content shifts [Å], why one is missing, and a sentence or ''."""
    labels = ("_rlnAngleRot", "_rlnAngleTilt", "_rlnAnglePsi")
    angles = columns.pair(*labels)
    missing = [label for label in labels if columns.get(label) is None]
    rotation = None if angles is None else euler_matrix(*angles.T)
    reason = f"the table lacks {', '.join(missing)}" if missing else ""
    origin = columns.pair("_rlnOriginXAngst", "_rlnOriginYAngst")
    if origin is not None:
        return rotation, -origin, reason, ""
    in_pixels = columns.pair("_rlnOriginX", "_rlnOriginY")
    if in_pixels is None:
        note = "" if missing else ORIGIN_NOTE
        return rotation, None if missing else np.zeros((columns.size, 2)), reason, note
    if pixel is None:
        if in_pixels.any():
            reason = reason or "origins are in pixels, and the table has no pixel size (--pixel gives it)"
            return None, None, reason, ""
        return rotation, np.zeros((columns.size, 2)), reason, ""
    return rotation, -in_pixels * pixel[:, None], reason, ""


def _ctf(columns: Columns) -> dict[str, np.ndarray]:
    """What the table has of the CTF, by field name."""
    found = {name: (columns.get(label), factor) for name, (label, factor) in _CTF.items()}
    ctf = {name: values * factor for name, (values, factor) in found.items() if values is not None}
    if (tilt := columns.pair("_rlnBeamTiltX", "_rlnBeamTiltY")) is not None:
        ctf["beam_tilt"] = tilt / 1e3
    magnification = columns.pair("_rlnMagMat00", "_rlnMagMat01", "_rlnMagMat10", "_rlnMagMat11")
    if magnification is not None:
        ctf["stretch"] = np.swapaxes(magnification.reshape(-1, 2, 2), 1, 2)  # k @ stretch = M k
    for name, label in (("odd", "_rlnOddZernike"), ("even", "_rlnEvenZernike")):
        if (texts := columns.get(label)) is not None:
            ctf[name] = _zernike(texts, label, columns.path)
    return ctf


def _zernike(texts: np.ndarray, label: str, path: Path) -> np.ndarray:
    """`[1.5,0,2]` in each row -> coefficients padded with zeros, (N, longest)."""
    lists: dict[str, list[float]] = {}
    for text in dict.fromkeys(texts):
        try:
            if text[:1] + text[-1:] != "[]":
                raise ValueError
            lists[text] = [float(word) for word in text[1:-1].split(",") if word.strip()]
        except ValueError:
            raise DataError(
                f"{path}: {label} must be a list of numbers like [0.1,-2,0], found {text[:60]!r}."
            ) from None
    width = max(map(len, lists.values()), default=0)
    padded = {text: numbers + [0.0] * (width - len(numbers)) for text, numbers in lists.items()}
    return np.array([padded[text] for text in texts]).reshape(len(texts), width)


def _group(
    columns: Columns, ctf: dict[str, np.ndarray], pixel: np.ndarray | None
) -> tuple[np.ndarray, tuple[str, ...], str]:
    if columns.group is None:
        return optics_groups(ctf, pixel, columns.size)
    count = len(columns.shared["_rlnOpticsGroup"])
    unnamed = [f"opticsGroup{i + 1}" for i in range(count)]
    names = [str(name) for name in columns.shared.get("_rlnOpticsGroupName", unnamed)]
    used = np.unique(columns.group)
    if len(used) == count:
        return columns.group, tuple(names), ""
    idle = [name for i, name in enumerate(names) if i not in set(used.tolist())]
    group = np.searchsorted(used, columns.group).astype(np.int32)
    note = f"optics groups without particles, not counted: {', '.join(idle)}."
    return group, tuple(names[i] for i in used), note


def _micrograph(columns: Columns) -> tuple[np.ndarray | None, str]:
    """What keeps particles together in splits, and a sentence or ''."""
    micrograph, series = columns.get("_rlnMicrographName"), columns.get("_rlnGroupName")
    if micrograph is None:
        return (series if columns.get("_rlnTomoName") is None else columns.get("_rlnTomoName")), ""
    if series is None:
        return micrograph, ""
    weight = columns.get("_rlnCtfScalefactor")
    tilted = weight is not None and len(np.unique(weight)) > 1
    pairs = len(set(zip(series.tolist(), micrograph.tolist(), strict=True)))
    if tilted and pairs == columns.size and len(set(series.tolist())) < columns.size:
        return series, "tilt series: the images of one _rlnGroupName, each of another micrograph, are kept together."
    return micrograph, ""


def _ignored(columns: Columns) -> list[str]:
    """Columns that RELION's own image model uses and this one does not."""
    notes = []
    if columns.get("_rlnMtfFileName") is not None:
        notes.append("ignored: _rlnMtfFileName; the detector's MTF changes amplitudes only (no phase error).")
    norm = columns.get("_rlnNormCorrection")
    if norm is not None and len(norm) and not np.allclose(norm, 1, atol=1e-3):
        notes.append(
            f"ignored: _rlnNormCorrection ({norm.min():.3g} … {norm.max():.3g}); grey values are taken as they are "
            "(no phase error)."
        )
    return notes
