import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hetmodels import cli

STAR = (
    "# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnOpticsGroupName #2\n_rlnVoltage #3\n"
    "_rlnSphericalAberration #4\n_rlnAmplitudeContrast #5\n_rlnImagePixelSize #6\n_rlnImageSize #7\n"
    "1 fast 300 2.7 0.1 1.5 16\n\n# version 30001\n\ndata_particles\n\nloop_\n_rlnImageName #1\n"
    "_rlnMicrographName #2\n_rlnDefocusU #3\n_rlnDefocusV #4\n_rlnDefocusAngle #5\n_rlnAngleRot #6\n"
    "_rlnAngleTilt #7\n_rlnAnglePsi #8\n_rlnOriginXAngst #9\n_rlnOriginYAngst #10\n_rlnOpticsGroup #11\n"
    "1@a.mrcs m1 10000 9000 10 20 30 40 3 4 1\n2@a.mrcs m2 12000 11500 10 50 60 70 0 0 1\n"
)


def table(tmp_path, text=STAR):
    path = tmp_path / "p.star"
    path.write_text(text)
    return path


def stack(path, count=2, box=16, held=None):
    header = np.zeros(256, "<i4")
    header[:4], header[7:10] = (box, box, count, 2), (box, box, count)
    header[52], header[53] = int.from_bytes(b"MAP ", "little"), 0x4444
    pixels = np.random.default_rng(0).normal(size=(count if held is None else held, box, box))
    path.write_bytes(header.tobytes() + pixels.astype("<f4").tobytes())


def inspect(capsys, *words):
    status = cli.main(["inspect", *map(str, words)])
    return status, *capsys.readouterr()


def test_report_in_words(tmp_path, capsys):
    stack(tmp_path / "a.mrcs")
    status, out, err = inspect(capsys, table(tmp_path))
    assert status == 0 and not err
    for words in (
        "relion 3.1",
        "particles    2 from 2 micrographs",
        "1 stacks, found, box 16",
        "box          16, pixel 1.5 Å, contrast not stated",
        "fast: 2 particles, 300 kV, Cs 2.7 mm, amplitude contrast 0.1, 1.5 Å",
        "rot 20 … 50°, tilt 30 … 60°, psi 40 … 70°; shift 2.5 Å, up to 5 Å",
        "defocus 9000 … 12000 Å, astigmatism 500 … 1000 Å",
        "no problems found",
    ):
        assert words in out


def test_json_only(tmp_path, capsys):
    status, out, err = inspect(capsys, table(tmp_path), "--json")
    data = json.loads(out)
    assert status == 0 and data["particles"] == 2 and data["box"] == 16 and data["pixel"] == [1.5, 1.5]
    assert data["images"]["found"] is False and data["problems"] == []
    assert data["poses"]["tilt"] == pytest.approx([30, 60]) and data["ctf"]["defocus"] == [9000, 12000]
    assert data["optics_groups"] == [
        {"name": "fast", "particles": 2, "pixel": 1.5, "voltage_kv": 300.0, "cs_mm": 2.7, "q": 0.1}
    ]


def test_stacks_are_looked_at_if_they_are_there(tmp_path, capsys):
    _, out, _ = inspect(capsys, table(tmp_path))
    assert "images       1 stacks, not found: a.mrcs" in out and "no problems found" in out
    (tmp_path / "elsewhere").mkdir()
    stack(tmp_path / "elsewhere" / "a.mrcs", box=15)
    status, out, _ = inspect(capsys, table(tmp_path), "--datadir", tmp_path / "elsewhere")
    assert status == 0 and "declares a box of 16 pixels, the stacks have 15" in out and "--box 14" in out
    stack(tmp_path / "a.mrcs", held=1)
    status, out, _ = inspect(capsys, table(tmp_path))
    assert status == 0 and "error: " in out and "truncated" in out and "no problems" not in out
    stack(tmp_path / "a.mrcs", count=1)
    assert "asks for image 2" in inspect(capsys, table(tmp_path))[1]


def test_overrides_and_problems(tmp_path, capsys):
    path = table(tmp_path, STAR.replace("_rlnVoltage", "_rlnSomething").replace("30 40 3 4", "30 40 300 4"))
    _, out, _ = inspect(capsys, path)
    assert "CTF          none: the table lacks _rlnVoltage (--voltage gives it)" in out
    assert "error: no CTF" in out and "shifted by more than half a box" in out
    _, out, _ = inspect(capsys, path, "--voltage", 200, "--pixel", 40)
    assert "200 kV" in out and "pixel 40 Å" in out and "half a box" not in out
    _, out, _ = inspect(capsys, path, "--no-ctf", "--invert")
    assert "left out by --no-ctf" in out and "no CTF" not in out and "protein dark" in out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (STAR.replace(" 20 30 40", " 20 nan 40"), "angles is NaN or infinite in 1 of 2 rows (row 0"),
        (STAR.replace(" 10 20 30", " 20 30"), "every row must have 11 fields"),
        ("garbage", "text file without STAR blocks"),
        ("data_model_general\n_rlnPixelSize 1\n", "a RELION model file"),
    ],
)
def test_refusals_are_one_sentence_and_status_one(tmp_path, capsys, text, words):
    status, out, err = inspect(capsys, table(tmp_path, text))
    assert status == 1 and not out and words in err and err.count("\n") == 1 and "Traceback" not in err


def test_missing_files_and_useless_options(tmp_path, capsys):
    status, _, err = inspect(capsys, tmp_path / "none.star")
    assert status == 1 and "no such file" in err
    status, _, err = inspect(capsys, table(tmp_path), "--box", 8)
    assert status == 2 and "--box has no use here" in err


def test_jax_is_not_imported(tmp_path):
    stack(tmp_path / "a.mrcs")
    code = "import sys; from hetmodels import cli; cli.main(['inspect', sys.argv[1]]); print('jax' in sys.modules)"
    command = [sys.executable, "-c", code, str(table(tmp_path))]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"


def test_every_shared_file_is_understood_or_refused_in_words(capsys):
    folder = Path(os.environ.get("HETMODELS_DATA") or "absent")
    if not folder.is_dir():
        pytest.skip("HETMODELS_DATA does not name the folder of reference files")
    understood = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        status, out, err = inspect(capsys, path)
        assert (status, bool(out), bool(err)) in {(0, True, False), (1, False, True)}, path
        assert err.count("\n") <= 1 and "Traceback" not in err
        understood += status == 0
    assert understood >= 25
