"""What a particle table says, checked against its images and ready for batches."""

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np

from hetmodels.data.fields import Metadata
from hetmodels.data.fingerprint import fingerprint
from hetmodels.data.splits import number
from hetmodels.data.stacks import Stacks
from hetmodels.errors import DataError, UsageError
from hetmodels.imaging.ctf import Ctf


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """All rows of a table, numpy on the host.

    Attributes:
        name: what to call the table in messages.
        pixel: pixel size of each image [Å], (N,).
        group: optics group from 0, int32 (N,).
        image: number of the image that a row shows, equal where two rows show the same one, (N,).
        micrograph: micrograph number, (N,), or None if unknown.
        rotation: matrices A, (N, 3, 3), or None.
        shift: content shifts t = -origin [Å], (N, 2), or None.
        ctf: contrast transfer with N rows, or None.
        identity: text that stands for the images, whatever is known of them; fixes the splits.
        sign: factor on the images that makes protein bright.
        flipped: phases were flipped.
        premultiplied: images were multiplied by their CTF.
        no_ctf: the user said that the images have no CTF.
        pose_reason: why rotation is None.
        ctf_reason: why ctf is None.
        metadata: the table as read, or None for a set from arrays.
    """

    name: str
    pixel: np.ndarray
    group: np.ndarray
    image: np.ndarray
    micrograph: np.ndarray | None
    rotation: np.ndarray | None
    shift: np.ndarray | None
    ctf: Ctf | None
    identity: str
    sign: int = 1
    flipped: bool = False
    premultiplied: bool = False
    no_ctf: bool = False
    pose_reason: str = ""
    ctf_reason: str = ""
    metadata: Metadata | None = None

    def __post_init__(self) -> None:
        count = len(self.image)
        arrays = {"group": self.group, "micrograph": self.micrograph, "rotation": self.rotation, "shift": self.shift}
        arrays |= {"ctf": None if self.ctf is None else np.asarray(self.ctf.defocus_u)}
        for name, array in arrays.items():
            if array is not None and len(array) != count:
                raise UsageError(f"{self.name}: {name} must have one row per image, {count}, got {len(array)}.")
        bad = np.flatnonzero(~(np.isfinite(self.pixel) & (self.pixel > 0)))
        if len(bad):
            raise DataError(
                f"{self.name}: the pixel size must be positive, row {bad[0]} has {self.pixel[bad[0]]}; give --pixel."
            )

    @property
    def reference_pixel(self) -> float:
        """Pixel size of the first optics group [Å]; all frequencies are counted in boxes of it."""
        return float(self.pixel[np.argmin(self.group)])

    @cached_property
    def relative(self) -> np.ndarray:
        """Reference pixel size over the particle's own, (N,)."""
        return self.reference_pixel / self.pixel

    @cached_property
    def relative_ctf(self) -> Ctf | None:
        """The CTF with stretch and scale relative to the reference pixel size.

        An image with pixels of p Å instead of a Å shows the same grey values at other places: pixel k of its
        transform lies at frequency k a/p, and is (a/p)^2 times as large.
        """
        if self.ctf is None or np.all(self.relative == 1):
            return self.ctf
        stretch = self.ctf.stretch * self.relative[:, None, None]
        return dataclasses.replace(self.ctf, stretch=stretch, scale=self.ctf.scale * self.relative**2)

    def content(self) -> dict[str, Any]:
        """Everything that a fit depends on, for the data hash; not where the files lie."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kept = {name: value for name, value in fields.items() if name not in ("name", "metadata")}
        return kept | {"ctf": None if self.ctf is None else vars(self.ctf)}

    def require_poses(self, rows: np.ndarray) -> None:
        """Check that the rows have poses that can make a map.

        Raises:
            DataError: if there are none, some are not finite, or all are the same.
        """
        if self.rotation is None or self.shift is None:
            raise DataError(f"{self.name}: no poses: {self.pose_reason}. Give --poses FILE.pkl, or a refined table.")
        rotation, shift = self.rotation[rows], self.shift[rows]
        bad = np.flatnonzero(~(np.isfinite(rotation).all((1, 2)) & np.isfinite(shift).all(1)))
        if len(bad):
            raise DataError(
                f"{self.name}: angles and origins must be finite, row {rows[bad[0]]} has NaN or infinite ones "
                f"({len(bad)} rows in all). Remove these rows, or estimate their poses again."
            )
        if len(rows) > 1 and np.all(np.abs(rotation - rotation[0]) < 1e-6):
            raise DataError(
                f"{self.name}: all {len(rows)} particles have the same orientation, from which no map follows; the "
                "table was written before refinement, or its angles were lost. Give a refined table or --poses."
            )

    def require_ctf(self, rows: np.ndarray) -> None:
        """Check that the rows have a contrast transfer function.

        Raises:
            DataError: if there is none, it is not finite, or all defoci are zero.
        """
        if self.ctf is None:
            raise DataError(
                f"{self.name}: no CTF: {self.ctf_reason}. Give --ctf FILE.pkl, or --no-ctf for images without one."
            )
        parts = {name: np.asarray(leaf)[rows].reshape(len(rows), -1) for name, leaf in vars(self.ctf).items()}
        for name, values in parts.items():
            bad = np.flatnonzero(~np.isfinite(values).all(1))
            if len(bad):
                raise DataError(
                    f"{self.name}: CTF parameters must be finite, {name} of row {rows[bad[0]]} is not ({len(bad)} rows "
                    "in all). Remove these rows, or estimate their CTF again."
                )
        if not self.no_ctf and not (parts["defocus_u"].any() or parts["defocus_v"].any()):
            raise DataError(
                f"{self.name}: all defoci are zero, so the CTF was never estimated. Give --ctf FILE.pkl, or --no-ctf "
                "if the images have none."
            )


def read_table(metadata: Metadata, source: Stacks) -> tuple[Table, tuple[str, ...]]:
    """The table of particles whose images were found, and what to tell the user.

    Raises:
        DataError: if there is no pixel size, or an image appears twice with one pose.
    """
    name = str(metadata.path)
    if metadata.pixel is None:
        claimed = source.headers[0].spacing
        hint = f" The stack's header says {claimed:.6g} Å, which is often wrong." if claimed else ""
        raise DataError(f"{name}: no pixel size in the table; give --pixel Å.{hint}")
    key = source.file.astype(np.int64) * (int(source.row.max()) + 1) + source.row
    table = Table(
        name=name,
        pixel=np.asarray(metadata.pixel, np.float64),
        group=np.asarray(metadata.group, np.int32),
        image=np.unique(key, return_inverse=True)[1],
        micrograph=None if metadata.micrograph is None else number(metadata.micrograph.tolist()),
        rotation=metadata.rotation,
        shift=_shift(metadata),
        ctf=_ctf(metadata, len(source)),
        identity=fingerprint({"stack": np.array(source.texts), "file": source.file, "row": source.row}),
        sign=metadata.contrast_sign or 1,
        flipped=metadata.phase_flipped,
        premultiplied=metadata.premultiplied,
        no_ctf=metadata.without_ctf,
        pose_reason=metadata.pose_reason,
        ctf_reason=metadata.ctf_reason,
        metadata=metadata,
    )
    _no_doubles(table, source)
    return table, _findings(table, metadata, source)


def _shift(metadata: Metadata) -> np.ndarray | None:
    """Shifts are zero where a table has orientations but no origins."""
    if metadata.shift is None and metadata.rotation is not None:
        return np.zeros((len(metadata.rotation), 2))
    return metadata.shift


def _ctf(metadata: Metadata, count: int) -> Ctf | None:
    if metadata.without_ctf:
        return Ctf.ideal(count)
    if metadata.ctf is None:
        return None
    return dataclasses.replace(Ctf.ideal(count), **{name: np.asarray(v) for name, v in metadata.ctf.items()})


def _no_doubles(table: Table, source: Stacks) -> None:
    """Refuse an image that appears twice with one pose; with two poses it may be symmetry expansion."""
    shown = np.bincount(table.image)
    rows = np.flatnonzero(shown[table.image] > 1)
    if not len(rows):
        return
    pose = np.zeros((len(rows), 0))
    if table.rotation is not None and table.shift is not None:
        pose = np.concatenate([table.rotation[rows].reshape(-1, 9), table.shift[rows]], axis=1)
    rows = rows[order := np.lexsort((*pose.T, table.image[rows]))]
    equal = (np.diff(table.image[rows]) == 0) & np.all(np.diff(pose[order], axis=0) == 0, axis=1)
    double = np.flatnonzero(equal)
    if len(double):
        a, b = sorted(rows[double[0] : double[0] + 2])
        raise DataError(
            f"{table.name}: {source.name(a)} appears with the same pose in rows {a} and {b} ({len(double)} pairs) "
            "and would count twice. Remove the duplicates."
        )


def _findings(table: Table, metadata: Metadata, source: Stacks) -> tuple[str, ...]:
    notes = [*metadata.notes, *source.notes]
    sizes = np.unique(table.pixel)
    if len(sizes) > 1:
        listed = ", ".join(f"{size:.6g}" for size in sizes)
        notes.append(f"pixel sizes {listed} Å: frequencies are mapped to those of {table.reference_pixel:.6g} Å.")
    if metadata.box is not None and np.any(metadata.box != source.box):
        wrong = metadata.box[metadata.box != source.box][0]
        notes.append(f"the table says boxes of {wrong} pixels, the stacks have {source.box}: the stacks are believed.")
    return tuple(notes)
