import json

import numpy as np
import pytest

from hetmodels import cli
from hetmodels.cli.select import latent_box
from hetmodels.data.export import write_particles
from hetmodels.data.metadata import read_metadata
from hetmodels.data.star import open_star

STAR = (
    "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnImagePixelSize\n1 1.5\n\n"
    "data_particles\n\nloop_\n_rlnImageName\n_rlnOpticsGroup\n_rlnComment\n{label}"
    + "".join(f"{i + 1}@a.mrcs   1 'row {i}'{{{i}}}\n" for i in range(6))
)
CLASSES = np.array([1, 2, 1, 2, 3, 3])
COLUMNS = {
    "hetLatent1": np.linspace(-1, 1, 6),
    "hetLatentSd1": np.full(6, 0.1),
    "hetLatent2": np.array([0, 1, 2, 3, 4, 5.0]),
    "hetClass": CLASSES,
    "hetClassProbability": np.array([0.9, 0.5, 0.6, 0.99, 0.7, 1.0]),
    "hetOutlierProbability": np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    "hetHeldOut": np.zeros(6, int),
    "hetLogLikelihood": np.arange(6.0),
    "rlnClassNumber": CLASSES,
}


def run_folder(tmp_path, label="", values=("",) * 6):
    source, run = tmp_path / "in.star", tmp_path / "run"
    source.write_text(STAR.format(*values, label=label))
    run.mkdir()
    (run / "config.toml").write_text("")
    write_particles(read_metadata(source), run / "particles.star", COLUMNS)
    return source, run


def cs_run(tmp_path):
    fields = [("uid", "u8"), ("blob/path", "S9"), ("blob/idx", "u4"), ("blob/psize_A", "f4")]
    array = np.zeros(6, [*fields, ("alignments3D/class", "u4")])
    array["uid"], array["blob/path"], array["blob/idx"], array["blob/psize_A"] = (
        2**60 + np.arange(6),
        b"a.mrc",
        range(6),
        1,
    )
    with open(tmp_path / "in.cs", "wb") as file:
        np.save(file, array)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("")
    write_particles(read_metadata(tmp_path / "in.cs"), run / "particles.star", COLUMNS)
    return array, run


def select(capsys, *words):
    status = cli.main(["select", *map(str, words)])
    return status, *capsys.readouterr()


def rows(path):
    return [int(line.split("@")[0]) - 1 for line in path.read_text().splitlines() if "@" in line]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["--class", "1"], [0, 2]),
        (["--class", "3", "1"], [0, 2, 4, 5]),
        (["--min-probability", "0.7"], [0, 3, 4, 5]),
        (["--max-outlier", "0.4"], [0, 1, 2]),
        (["--min-outlier", "0.4"], [2, 3, 4, 5]),
        (["--box-in-latent", "-0.3:0.7"], [2, 3, 4]),
        (["--box-in-latent=-0.3:"], [2, 3, 4, 5]),
        (["--box-in-latent", "-.7:0.7,:2"], [1, 2]),
        (["--box-in-latent", ",4:"], [4, 5]),
        (["--class", "1", "2", "--min-probability", "0.55", "--max-outlier", "0.5"], [0, 2]),
    ],
)
def test_rules(tmp_path, capsys, rules, expected):
    source, run = run_folder(tmp_path)
    out = tmp_path / "out.star"
    status, text, err = select(capsys, run, *rules, "-o", out)
    assert status == 0 and not err and f"{len(expected)} of 6 particles" in text
    assert rows(out) == expected


def test_rows_of_a_file(tmp_path, capsys):
    _, run = run_folder(tmp_path)
    file, out = tmp_path / "rows.txt", tmp_path / "out.star"
    file.write_text("4\n0\n2\n")
    assert select(capsys, run, "--rows", file, "-o", out)[0] == 0 and rows(out) == [0, 2, 4]
    assert select(capsys, run, "--rows", file, "--class", 1, "-o", out, "--overwrite")[0] == 0 and rows(out) == [0, 2]
    for text, message in (("6\n", "found 6 to 6"), ("", "found none"), ("two\n", "must hold row numbers")):
        file.write_text(text)
        status, _, err = select(capsys, run, "--rows", file, "-o", tmp_path / "none.star")
        assert status == 1 and message in err


def test_the_original_rows_come_back(tmp_path, capsys):
    source, run = run_folder(tmp_path)
    out = tmp_path / "out.star"
    assert select(capsys, run, "--class", 1, 2, 3, "-o", out)[0] == 0
    before, after = (open_star(path).find("particles") for path in (source, out))
    assert after.labels == before.labels
    assert [after.fields(line) for line in after.rows.splitlines()] == [
        before.fields(line) for line in before.rows.splitlines()
    ]
    assert open_star(out).find("optics").head == open_star(source).find("optics").head


def test_replaced_values_are_restored_unless_columns_are_kept(tmp_path, capsys):
    _, run = run_folder(tmp_path, "_rlnClassNumber\n", [f" {k}" for k in (11, 12, 13, 14, 15, 16)])
    out, kept = tmp_path / "out.star", tmp_path / "kept.star"
    assert select(capsys, run, "--class", 2, "-o", out)[0] == 0
    assert open_star(out).find("particles").text("_rlnClassNumber").tolist() == ["12", "14"]
    assert select(capsys, run / "particles.star", "--class", 2, "-o", kept, "--keep-columns")[0] == 0
    block = open_star(kept).find("particles")
    assert block.text("_rlnClassNumber").tolist() == ["2", "2"] and "_hetLatent2" in block.labels


def test_cryosparc_files_keep_their_uids(tmp_path, capsys):
    array, run = cs_run(tmp_path)
    out = tmp_path / "out.cs"
    assert select(capsys, run, "--class", 2, 3, "--box-in-latent", "0:", "-o", out)[0] == 0
    back = np.load(out, allow_pickle=False)
    assert back.dtype == array.dtype and np.array_equal(back, array[[3, 4, 5]])
    assert select(capsys, run, "--class", 2, "-o", tmp_path / "kept.cs", "--keep-columns")[0] == 0
    assert np.load(tmp_path / "kept.cs")["het/Class"].tolist() == [2, 2]
    assert select(capsys, run, "--class", 2, "-o", tmp_path / "out.star")[0] == 0
    assert rows(tmp_path / "out.star") == [1, 3]
    assert select(capsys, tmp_path / "in.cs", "--class", 1, "-o", tmp_path / "own.cs")[0] == 0


def test_json_and_overwrite(tmp_path, capsys):
    _, run = run_folder(tmp_path)
    out = tmp_path / "out.star"
    status, text, _ = select(capsys, run, "--class", 1, "-o", out, "--json")
    assert status == 0 and json.loads(text) == {"output": str(out), "selected": 2, "of": 6}
    status, _, err = select(capsys, run, "--class", 1, "-o", out)
    assert status == 2 and "--overwrite" in err
    assert select(capsys, run, "--class", 2, "-o", out, "--overwrite")[0] == 0 and rows(out) == [1, 3]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["-o", "out.star"], 2, "say which particles"),
        (["--class", "4", "-o", "out.star"], 1, "no particle is in class 4; there are classes 1, 2, 3"),
        (["--class", "0", "-o", "out.star"], 2, "at least 1"),
        (["--min-probability", "1.5", "-o", "out.star"], 2, "at most 1"),
        (["--box-in-latent", "1:0", "-o", "out.star"], 2, "the lower bound comes first"),
        (["--box-in-latent", "7", "-o", "out.star"], 2, "each axis is LO:HI"),
        (["--box-in-latent", ",,0:1", "-o", "out.star"], 1, "no column _hetLatent3"),
        (["--box-in-latent", "5:6", "-o", "out.star"], 1, "none of the 6 particles meets all the rules"),
        (["--class", "1", "-o", "out.mrcs"], 2, "must end in .star or .cs"),
        (["--class", "1", "-o", "out.cs"], 1, "its input was no cryoSPARC file"),
    ],
)
def test_what_cannot_be(tmp_path, capsys, monkeypatch, words, status, message):
    _, run = run_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    found, out, err = select(capsys, run, *words)
    assert (found, out) == (status, "") and message in err
    assert not list(tmp_path.glob("out*"))


def test_not_over_the_input(tmp_path, capsys):
    _, run = run_folder(tmp_path)
    path = run / "particles.star"
    status, _, err = select(capsys, run, "--class", 1, "-o", path, "--overwrite")
    assert status == 2 and "is the input itself" in err


def test_latent_box():
    assert latent_box("-1:1,:0,") == [(-1, 1), (-np.inf, 0), (-np.inf, np.inf)]
