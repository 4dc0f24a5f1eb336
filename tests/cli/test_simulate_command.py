"""The command `simulate`: every source of states, what it prints, and the calls it refuses."""

import json
import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile

from hetmodels.cli import main
from hetmodels.data.maps import read_map, write_map

SMALL = ["--box", "16", "--pixel", "8", "-n", "30"]
PDB = """\
ATOM      1  N   GLY A   1       1.000   2.000   3.000  1.00 10.00           N
ATOM      2  CA  GLY A   1       2.000   8.500   3.000  1.00 20.00           C
ATOM      3  C   ALA A   2      25.000   0.500  -1.000  1.00 30.00           C
ATOM      4  O   ALA A   3     -15.000  10.500 -14.000  1.00 30.00           O
END
"""


def simulated(capsys: pytest.CaptureFixture, *words: object) -> dict:
    assert main(["simulate", *map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture, status: int, words: str, *call: object) -> None:
    assert main(["simulate", *map(str, call)]) == status
    captured = capsys.readouterr()
    assert captured.out == "" and words in captured.err, captured.err


@pytest.fixture
def pdb(tmp_path: Path) -> Path:
    path = tmp_path / "a.pdb"
    path.write_text(PDB)
    moved = PDB.replace("25.000   0.500", "20.000   9.500")
    (tmp_path / "b.pdb").write_text(moved)
    return path


def test_phantom_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = simulated(capsys, tmp_path / "new" / "o.star", "--phantom", 3, *SMALL, "--snr", 0.5, "--shift-sd", 3)
    assert data["particles"] == 30 and sum(data["states"]) == 30 and len(data["states"]) == 3
    truth = starfile.read(Path(data["truth"]) / "truth.star")
    np.testing.assert_allclose(truth["hetTrueLatent1"], (truth["hetTrueState"] - 1) / 2)
    with mrcfile.open(data["stack"]) as file:
        assert file.data.shape == (30, 16, 16) and file.is_image_stack()
        assert float(file.voxel_size.x) == 8
    assert main(["simulate", str(tmp_path / "p.star"), "--phantom", "1", *SMALL, "--no-ctf"]) == 0
    text = capsys.readouterr().out
    assert "SNR 0.1 in the whole box" in text and "30 particles of 16 x 16 pixels of 8 Å" in text
    assert "--no-ctf" in text.splitlines()[-1]
    assert "rlnDefocusU" not in (tmp_path / "p.star").read_text()


def test_structures_morph_beads_and_weights(tmp_path: Path, pdb: Path, capsys: pytest.CaptureFixture) -> None:
    pair = ["--structure", pdb, "--structure", pdb.with_name("b.pdb")]
    two = simulated(capsys, tmp_path / "two.star", *pair, *SMALL, "--weights", "1,0")
    assert two["states"] == [30, 0]
    assert "hetTrueLatent1" not in (Path(two["truth"]) / "truth.star").read_text()
    way = simulated(capsys, tmp_path / "way.star", *pair, *SMALL, "--morph", 5, "--superpose", "--beads")
    assert len(way["states"]) == 5 and "4 atoms that both structures share" in way["notes"][0]
    maps = [read_map(Path(way["truth"]) / f"state_00{i}.mrc").values for i in (1, 3, 5)]
    apart = [np.linalg.norm(m - maps[0]) for m in maps]
    assert 0 < apart[1] < apart[2]
    fine = simulated(capsys, tmp_path / "fine.star", *pair[:2], *SMALL, "--resolution", 30, "--bfactor", "file")
    assert fine["states"] == [30]
    wide = simulated(capsys, tmp_path / "w.star", *pair[:2], "--box", 16, "--pixel", 2, "-n", 2)
    assert any("wraps round" in note for note in wide["notes"])


def test_trajectory(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    frames = np.random.default_rng(0).normal(0, 15, (7, 20, 3))
    np.save(tmp_path / "t.npy", frames)
    data = simulated(capsys, tmp_path / "o.star", "--trajectory", tmp_path / "t.npy", "--stride", 3, *SMALL)
    assert len(data["states"]) == 3


def test_volume_without_voxel_size(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from hetmodels.data.phantom import phantom

    write_map(tmp_path / "m.mrc", np.asarray(phantom(1, 16, 8.0)[0].density(16, 8.0)), 0.0)
    data = simulated(
        capsys, tmp_path / "o.star", "--volume", tmp_path / "m.mrc", *SMALL, "--snr", "inf", "--noise", "white"
    )
    assert any("no voxel size" in note for note in data["notes"])
    assert any("cubic splines" in note for note in data["notes"])
    assert data["snr"] is None and data["noise_sd"] == 0


def test_like_takes_poses_and_ctf(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first = simulated(
        capsys, tmp_path / "a.star", "--phantom", 1, *SMALL, "--shift-sd", 4, "--defocus", "9000:15000",
        "--voltage", 200, "--cs", 1.2, "--amplitude-contrast", 0.07, "--snr", "inf",
    )  # fmt: skip
    second = simulated(capsys, tmp_path / "b.star", "--phantom", 1, "--like", first["star"], "--snr", "inf")
    assert (second["particles"], second["box"], second["pixel"]) == (30, 16, 8.0)
    with mrcfile.open(first["stack"]) as a, mrcfile.open(second["stack"]) as b:
        np.testing.assert_allclose(a.data, b.data, atol=1e-4)
    tables = [starfile.read(s["star"])["particles"].drop(columns="rlnImageName") for s in (first, second)]
    for name in tables[0].columns:
        if tables[0][name].dtype == object or name.endswith("Name"):
            assert tables[0][name].tolist() == tables[1][name].tolist()
        else:
            np.testing.assert_allclose(tables[0][name], tables[1][name], atol=2e-5, err_msg=name)
    more = simulated(capsys, tmp_path / "c.star", "--phantom", 1, "--like", first["star"], "-n", 40, "--no-ctf")
    assert more["particles"] == 40


def test_like_a_real_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = Path(os.environ.get("HETMODELS_DATA") or "absent")
    star = folder / "stacks" / "relion31" / "relion31.star"
    if not star.exists():
        pytest.skip("needs stacks/relion31 in the folder that HETMODELS_DATA names")
    data = simulated(capsys, tmp_path / "a.star", "--phantom", 2, "--like", star, "--box", 32, "--pixel", 16)
    ours, theirs = starfile.read(data["star"])["particles"], starfile.read(star)["particles"]
    assert len(ours) == 5
    np.testing.assert_allclose(ours["rlnDefocusU"].astype(float), theirs["rlnDefocusU"].astype(float), atol=1e-3)


def test_wrong_calls(tmp_path: Path, pdb: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "o.star"
    refused(capsys, 2, "exactly one of --structure", out)
    refused(capsys, 2, "got --structure, --phantom", out, "--phantom", 2, "--structure", pdb)
    refused(capsys, 2, "--morph goes between two structures", out, "--structure", pdb, "--morph", 4)
    refused(capsys, 2, "--beads needs --structure or --trajectory", out, "--phantom", 2, "--beads")
    refused(capsys, 2, "--stride needs --trajectory", out, "--phantom", 2, "--stride", 4)
    refused(capsys, 2, "--defocus", out, "--phantom", 2, "--defocus", "1")
    refused(capsys, 2, "1 µm = 10000 Å", out, "--phantom", 2, "--defocus", "1:2.5")
    refused(capsys, 2, "--voltage has no use with --no-ctf", out, "--phantom", 2, "--voltage", 300, "--no-ctf")
    refused(capsys, 2, "--snr", out, "--phantom", 2, "--snr", -1)
    refused(capsys, 2, "Did you mean --phantom", out, "--phantm", 2)
    refused(capsys, 2, "needs 2 weights", out, "--phantom", 2, "--weights", "1,2,3", *SMALL)
    refused(capsys, 2, "named *.star", tmp_path / "o.mrcs", "--phantom", 2)
    refused(capsys, 1, "no such file", out, "--structure", tmp_path / "none.pdb", *SMALL)
    assert not out.exists() and not out.with_suffix(".mrcs").exists()
    out.touch()
    refused(capsys, 2, "Add --overwrite", out, "--phantom", 2, *SMALL)
    assert main(["simulate", str(out), "--phantom", "2", *SMALL, "--overwrite"]) == 0
