"""Small RELION tables, with what a test wants changed, and stacks to go with them."""

import os
from pathlib import Path

import numpy as np
import pytest

OPTICS = (
    "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnOpticsGroupName\n_rlnVoltage\n_rlnSphericalAberration\n"
    "_rlnAmplitudeContrast\n_rlnImagePixelSize\n_rlnImageSize\n{labels}"
    "5 fast 300 2.7 0.1 1.5 64{first}\n2 slow 200 2.0 0.07 2.0 64{second}\n"
)
COLUMNS = {
    "_rlnImageName": ["1@a.mrcs", "2@a.mrcs", "3@sub/b.mrcs", "4@sub/b.mrcs"],
    "_rlnMicrographName": ["m1", "m1", "m2", "m2"],
    "_rlnOpticsGroup": ["5", "2", "5", "5"],
    "_rlnDefocusU": ["10000", "11000", "12000", "13000"],
    "_rlnDefocusV": ["9000", "10500", "11900", "12000"],
    "_rlnDefocusAngle": ["30", "-40", "90", "0"],
    "_rlnAngleRot": ["10", "20", "30", "40"],
    "_rlnAngleTilt": ["50", "60", "70", "80"],
    "_rlnAnglePsi": ["-90", "100", "110", "120"],
    "_rlnOriginXAngst": ["3", "-3", "0.5", "0"],
    "_rlnOriginYAngst": ["1", "2", "3", "-4"],
}
OLD = {
    "_rlnVoltage": "300",
    "_rlnSphericalAberration": "2.7",
    "_rlnAmplitudeContrast": "0.1",
    "_rlnDetectorPixelSize": "14",
    "_rlnMagnification": "70000",
    "_rlnOriginX": "1.5",
    "_rlnOriginY": "-2",
}


def loop(name, columns):
    rows = "".join(" ".join(row) + "\n" for row in zip(*columns.values(), strict=True))
    return f"data_{name}\n\nloop_\n" + "".join(f"{label}\n" for label in columns) + rows + "\n"


def star(tmp_path, *, drop=(), optics=True, labels="", first="", second="", name="particles", **changes):
    columns = {k: v for k, v in COLUMNS.items() if k not in drop}
    columns |= {f"_{k}": v if isinstance(v, list) else [v] * 4 for k, v in changes.items()}
    text = OPTICS.format(labels=labels, first=first, second=second) if optics else ""
    path = tmp_path / "p.star"
    path.write_text(text + "\n" + loop(name, columns))
    return path


def old(tmp_path, drop=(), **changes):
    gone = ("_rlnOpticsGroup", "_rlnOriginXAngst", "_rlnOriginYAngst", *drop)
    values = {k[1:]: v for k, v in OLD.items() if k not in drop} | changes
    return star(tmp_path, drop=gone, optics=False, name="images", **values)


def shared(name=""):
    path = Path(os.environ.get("HETMODELS_DATA") or "absent") / name
    if not path.exists():
        pytest.skip(f"needs {name or 'the folder'} that HETMODELS_DATA names")
    return path


def stack(path, count, box):
    header = np.zeros(256, "<i4")
    header[:4], header[7:10] = (box, box, count, 2), (box, box, count)
    header[52], header[53] = int.from_bytes(b"MAP ", "little"), 0x4444
    path.write_bytes(header.tobytes() + np.random.default_rng(0).normal(size=(count, box, box)).astype("<f4").tobytes())
