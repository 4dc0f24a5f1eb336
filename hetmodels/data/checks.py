"""What is wrong with a particle table, as far as the table itself shows."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np

from hetmodels.data.fields import Metadata

_FEWEST = 20  # particles of an optics group below which its noise spectrum is badly known


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something to be put right.

    Attributes:
        severity: an error gives no result worth having, a warning perhaps a poor one.
        text: what, and the cure.
    """

    severity: Literal["error", "warning"]
    text: str


def problems(metadata: Metadata) -> list[Problem]:
    """All that is found, errors first. Values that are not finite were refused when the table was read."""
    found = [*_images(metadata), *_poses(metadata), *_optics(metadata), *_sets(metadata)]
    return sorted(found, key=lambda problem: problem.severity)


def _images(metadata: Metadata) -> Iterator[Problem]:
    bad = np.flatnonzero(metadata.row < 0)
    if len(bad):
        yield Problem(
            "error",
            f"{len(bad)} rows name image 0 or less of a stack, where counting starts at 1; the first is row {bad[0]} "
            f"({metadata.stack[bad[0]]}). Extract the particles again.",
        )
    image = image_numbers(metadata)
    repeated = np.bincount(image)[image] > 1
    if not repeated.any():
        return
    parts = [image[repeated, None].astype(np.float64)]
    if metadata.rotation is not None:
        parts.append(metadata.rotation[repeated].reshape(-1, 9))
    if metadata.shift is not None:
        parts.append(metadata.shift[repeated])
    rows = np.concatenate(parts, axis=1)
    double = len(rows) - len(np.unique(rows, axis=0))
    if double:
        yield Problem(
            "error",
            f"{double} rows repeat an image with the same pose, and would count twice. Remove the duplicates.",
        )
    if double < repeated.sum() - len(np.unique(image[repeated])):
        yield Problem(
            "warning",
            "some images appear with several poses (symmetry expansion?): their rows are not independent, and "
            "uncertainties come out too small.",
        )


def image_numbers(metadata: Metadata) -> np.ndarray:
    """A number for each distinct image, (N,)."""
    files: dict[str, int] = {}
    file = np.fromiter(
        (files.setdefault(text, len(files)) for text in metadata.stack.tolist()), np.int64, len(metadata)
    )
    span = int(metadata.row.max(initial=0)) - int(metadata.row.min(initial=0)) + 1
    return np.unique(file * span + metadata.row, return_inverse=True)[1]


def _poses(metadata: Metadata) -> Iterator[Problem]:
    if metadata.rotation is None:
        yield Problem("warning", f"no poses: {metadata.pose_reason}. They must be given or inferred.")
        return
    if len(metadata) > 1 and np.all(np.abs(metadata.rotation - metadata.rotation[0]) < 1e-6):
        yield Problem(
            "error",
            f"all {len(metadata)} particles have the same orientation, so no map follows. Give a refined table.",
        )
    if metadata.shift is not None and metadata.box is not None and metadata.pixel is not None:
        far = np.abs(metadata.shift).max(axis=1) > metadata.box * metadata.pixel / 2
        if far.any():
            yield Problem(
                "warning",
                f"{int(far.sum())} particles are shifted by more than half a box: origins and pixel size do not agree, "
                "or these particles lie outside their images.",
            )


def _optics(metadata: Metadata) -> Iterator[Problem]:
    pixel, ctf = metadata.pixel, metadata.ctf
    if pixel is None:
        yield Problem("error", "no pixel size in the table. Give --pixel.")
    elif np.any(pixel <= 0):
        yield Problem("error", f"pixel sizes must be positive, the smallest is {pixel.min():g} Å. Give --pixel.")
    elif pixel.min() < 0.2 or pixel.max() > 30:
        yield Problem("warning", f"pixel size {pixel.min():g} … {pixel.max():g} Å is unusual. --pixel overrides it.")
    if metadata.without_ctf:
        return
    if ctf is None:
        cure = "Give --ctf FILE.pkl, or --no-ctf for images without one."
        yield Problem("error", f"no CTF: {metadata.ctf_reason}. {cure}")
        return
    yield from _ranges(ctf)


def _ranges(ctf: dict[str, np.ndarray]) -> Iterator[Problem]:
    mean = (ctf["defocus_u"] + ctf["defocus_v"]) / 2
    if not (ctf["defocus_u"].any() or ctf["defocus_v"].any()):
        yield Problem(
            "error",
            "all defoci are zero, so the CTF was never estimated. Give --ctf FILE.pkl, or --no-ctf for images "
            "without one.",
        )
    elif np.any(mean < 0):
        count = int((mean < 0).sum())
        yield Problem(
            "warning", f"{count} particles have negative defocus (overfocus), rare in cryo-EM. Check the sign."
        )
    elif mean.max() < 100 or mean.max() > 2e5:
        yield Problem("warning", f"defocus up to {mean.max():g} Å: the unit should be Å (1 µm = 10000 Å).")
    if np.any((ctf["amplitude"] < 0) | (ctf["amplitude"] > 1)):
        low, high = ctf["amplitude"].min(), ctf["amplitude"].max()
        text = f"amplitude contrast must lie in 0 … 1, it is {low:g} … {high:g}. Give --amplitude-contrast."
        yield Problem("error", text)
    if np.any(ctf["voltage"] <= 0):
        yield Problem(
            "error", f"voltages must be positive, the smallest is {ctf['voltage'].min():g} kV. Give --voltage."
        )
    elif ctf["voltage"].min() < 50 or ctf["voltage"].max() > 2000:
        text = f"voltage {ctf['voltage'].min():g} … {ctf['voltage'].max():g}: the unit should be kV. Give --voltage."
        yield Problem("warning", text)
    if ctf["spherical"].max() > 1e8:
        yield Problem("warning", f"Cs up to {ctf['spherical'].max() / 1e7:g}: the unit should be mm. Give --cs.")


def _sets(metadata: Metadata) -> Iterator[Problem]:
    sizes = np.bincount(metadata.group, minlength=len(metadata.group_names))
    small = np.flatnonzero(sizes < _FEWEST)
    if len(small) and len(sizes) > 1:
        names = ", ".join(metadata.group_names[i] for i in small[:5]) + (", …" if len(small) > 5 else "")
        yield Problem(
            "warning",
            f"{len(small)} of {len(sizes)} optics groups have fewer than {_FEWEST} particles ({names}): their noise "
            "spectra will be poor. Join groups of the same microscope.",
        )
    if metadata.subset is not None and len(metadata) > 1 and len(np.unique(metadata.subset)) == 1:
        yield Problem("warning", f"all particles are in half set {metadata.subset[0]}: the other half is empty.")
