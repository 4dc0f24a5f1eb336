"""Every kind of bad input to `hetmodels fit`: one line that says what and how to cure it, and nothing left behind."""

import shutil
from collections import namedtuple

import mrcfile
import numpy as np
import pytest
import starfile

import inference
from hetmodels.cli import main
from hetmodels.errors import DataError

BOX = 16


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A good set: 120 images of 16 pixels, and one of 17."""
    folder = tmp_path_factory.mktemp("good")
    words = ["--phantom", "1", "-n", "120", "--pixel", "12", "--snr", "0.5", "--json"]
    assert main(["simulate", str(folder / "a.star"), "--box", str(BOX), *words]) == 0
    assert main(["simulate", str(folder / "odd.star"), "--box", str(BOX + 1), *words]) == 0
    return folder


@pytest.fixture
def good(made, tmp_path):
    """A copy of it that a test may spoil."""
    for file in made.glob("*.*"):
        if file.is_file():
            shutil.copy(file, tmp_path / file.name)
    return tmp_path


def refused(capsys, folder, *words, star="a.star", status=1, output="run"):
    """The error line of a fit that must fail and leave no run."""
    capsys.readouterr()
    found = main(["fit", str(folder / star), "-o", str(folder / output), *map(str, words)])
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and err.splitlines()[-1] == errors[0] and "Traceback" not in err, err
    assert found == status, errors[0]
    assert out == ""
    if output == "run":
        assert not (folder / "run").exists(), list((folder / "run").iterdir())
    return errors[0]


def edited(folder, change):
    """Change the table of the set; `change` gets the optics and the particles."""
    tables = starfile.read(folder / "a.star", always_dict=True)
    optics, particles = tables["optics"], tables["particles"]
    changed = change(optics, particles)
    starfile.write({"optics": optics, "particles": particles if changed is None else changed}, folder / "a.star")


def spoiled(folder, change):
    """Change the images of the set in place."""
    with mrcfile.open(folder / "a.mrcs", mode="r+") as file:
        change(file.data)


def test_missing_files(good, capsys):
    assert "nothing.star" in refused(capsys, good, star="nothing.star")
    (good / "a.mrcs").unlink()
    assert "a.mrcs" in refused(capsys, good) and "--datadir" in refused(capsys, good)


def test_truncated_stack(good, capsys):
    data = (good / "a.mrcs").read_bytes()
    (good / "a.mrcs").write_bytes(data[: len(data) // 2])
    text = refused(capsys, good)
    assert "a.mrcs" in text and "120" in text


def test_header_that_lies_about_its_length(good, capsys):
    data = bytearray((good / "a.mrcs").read_bytes())
    data[8:12] = np.int32(1000).tobytes()
    (good / "a.mrcs").write_bytes(data)
    text = refused(capsys, good)
    assert "a.mrcs" in text and "1000" in text


def test_row_past_the_end_of_the_stack(good, capsys):
    def change(optics, particles):
        particles.loc[7, "rlnImageName"] = "000121@a.mrcs"

    edited(good, change)
    text = refused(capsys, good)
    assert "121" in text and "120" in text


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "finite")])
def test_pixels_that_are_no_numbers(good, capsys, value, word):
    spoiled(good, lambda data: data[60].__setitem__((3, 4), value))
    text = refused(capsys, good)
    assert "61@" in text.replace("000061", "61") and (word in text or "finite" in text)
    spoiled(good, lambda data: data[60].__setitem__((3, 4), 0.0))
    assert main(["fit", str(good / "a.star"), "-o", str(good / "run"), "--set", "engine.iterations=1"]) == 0


def test_image_of_zeros(good, capsys):
    spoiled(good, lambda data: data[99].fill(0))
    assert "000100@" in refused(capsys, good)


def put(**columns):
    """A change of the table: these columns get these values."""

    def change(optics, particles):
        for name, value in columns.items():
            particles[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(rlnAngleTilt=[0.0] * 119 + [np.nan]), ("rlnAngleTilt", "119")),
        (put(rlnAngleRot=10.0, rlnAngleTilt=10.0, rlnAnglePsi=10.0), ("same orientation",)),
        (put(rlnDefocusU=0.0, rlnDefocusV=0.0), ("defoci are zero", "--no-ctf")),
        (lambda optics, particles: particles.drop(columns="rlnAngleRot"), ("rlnAngleRot",)),
        (lambda optics, particles: particles.drop(columns="rlnDefocusU"), ("rlnDefocusU", "--no-ctf")),
        (lambda optics, particles: particles.iloc[:0], ("no particles",)),
        (lambda optics, particles: particles.iloc[[0, *range(119)]], ("same pose", "Remove the duplicates")),
        (put(rlnRandomSubset=1), ("--no-halves",)),
    ],
    ids=["NaN angle", "same pose", "no defocus", "no angle", "no CTF", "no rows", "repeated", "one half"],
)
def test_tables_that_give_no_map(good, capsys, change, words):
    edited(good, change)
    text = refused(capsys, good, "--halves")
    assert all(word in text for word in words), text


@pytest.mark.parametrize("kind", ["model", "garbage", "volume", "xmd", "cs"])
def test_what_is_no_particle_table(good, capsys, kind):
    name = {"model": "model.star", "garbage": "b.star", "volume": "map.mrc", "xmd": "c.xmd", "cs": "v.cs"}[kind]
    path = good / name
    if kind == "model":
        path.write_text("data_model_general\n\n_rlnReferenceDimensionality 3\n_rlnCurrentResolution 8.0\n")
    elif kind == "garbage":
        path.write_bytes(bytes(range(256)) * 20)
    elif kind == "volume":
        mrcfile.write(path, np.zeros((8, 8, 8), np.float32))
    elif kind == "xmd":
        path.write_text("# XMIPP_STAR_1 *\ndata_noname\nloop_\n _image\n _angleRot\n1@a.stk 0.0\n")
    else:
        with open(path, "wb") as file:
            np.save(file, np.zeros(1, [("map/path", "S8"), ("map/shape", "<u4", 3)]))
    text = refused(capsys, good, star=name)
    assert name in text


def test_unequal_boxes(good, capsys):
    def change(optics, particles):
        particles.loc[5, "rlnImageName"] = "000006@odd.mrcs"

    edited(good, change)
    text = refused(capsys, good)
    assert "16" in text and "17" in text


def test_odd_box(good, capsys):
    assert f"--box {BOX}" in refused(capsys, good, star="odd.star")
    assert main(["fit", str(good / "odd.star"), "-o", str(good / "run"), "--box", "16", "--dry-run"]) == 0


def test_maps_of_another_box(good, capsys):
    mrcfile.write(good / "m.mrc", np.ones((20, 20, 20), np.float32), voxel_size=12.0)
    mrcfile.write(good / "n.mrc", np.ones((BOX, BOX, BOX), np.float32), voxel_size=6.0)
    for name in ("m.mrc", "n.mrc"):
        assert name in refused(capsys, good, "--mask", good / name)
        assert name in refused(capsys, good, "--reference", good / name)
    assert "a.star" in refused(capsys, good, "--reference", good / "a.star")
    assert "none.mrc" in refused(capsys, good, "--mask", good / "none.mrc")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--set", "engine.iteratons=3"], "Did you mean 'iterations'?"),
        (["--set", "engine.iterations=many"], "engine.iterations"),
        (["--set", "engine.iterations=2.5"], "engine.iterations"),
        (["--set", "engine.iterations=0"], "at least 1"),
        (["--set", "family.classes=3"], "family.classes"),
        (["--set", "engin.iterations=3"], "engine."),
        (["--set", "iterations"], "KEY=VALUE"),
        (["--family", "homogenous"], "Did you mean 'homogeneous'?"),
        (["--engine", "emm"], "Did you mean 'em'?"),
        (["--familly", "classes"], "Did you mean --family?"),
        (["--holdout", "0.9"], "at most 0.5"),
        (["--threads", "0"], "at least 1"),
        (["--box", "15"], "even"),
        (["--box", "64"], "--box"),
        (["--window", "1000"], "--window"),
        (["--ini-high", "20"], "--reference"),
        (["--overwrite", "--resume"], "one of them"),
    ],
)
def test_words_that_are_wrong(good, capsys, words, expected):
    assert expected in refused(capsys, good, *words, status=2)


def test_runs_that_cannot_be_started_from(good, capsys):
    assert "no run" in refused(capsys, good, "--start", good)
    assert "elsewhere" in refused(capsys, good, "--given", good / "elsewhere")


def test_output_that_is_taken(good, capsys):
    (good / "file").write_text("mine")
    assert "is a file" in refused(capsys, good, output="file", status=2)
    assert (good / "file").read_text() == "mine"
    (good / "full").mkdir()
    (good / "full" / "thesis.txt").write_text("mine")
    assert "not empty" in refused(capsys, good, output="full", status=2)
    assert [f.name for f in (good / "full").iterdir()] == ["thesis.txt"]
    (good / "old").mkdir()
    (good / "old" / "config.toml").write_text("seed = 0\n")
    assert "--resume" in refused(capsys, good, output="old", status=2)
    assert "holds no run" in refused(capsys, good, "--resume", status=2)


def test_full_disk(good, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    assert "of disk" in refused(capsys, good)


def test_too_little_memory_names_a_setting_that_would_fit(good, capsys):
    assert "--memory" in refused(capsys, good, "--memory", "0.001")


def test_a_failure_before_any_result_leaves_nothing_that_blocks_the_next_try(good, capsys, monkeypatch):
    def fail(*things, **options):
        raise DataError("an image far down the stack is broken.")

    run = good / "fresh"
    run.mkdir()
    (run / ".lock").write_text("")
    (run / "run.log").write_text("2026 INFO begun\n")  # all that a start that was killed left
    monkeypatch.setattr(inference, "fit", fail, raising=False)
    for output in ("run", "fresh"):
        assert "far down" in refused(capsys, good, output=output)
    assert list(run.iterdir()) == []


def test_a_failure_after_overwriting_brings_the_old_run_back(good, capsys, monkeypatch):
    words = ["fit", str(good / "a.star"), "-o", str(good / "old"), "--set", "engine.iterations=1"]
    assert main(words) == 0
    before = {file: file.read_bytes() for file in (good / "old").rglob("*") if file.is_file() and file.name != ".lock"}

    def fail(*things, **options):
        raise DataError("an image far down the stack is broken.")

    with monkeypatch.context() as context:
        context.setattr(inference, "fit", fail, raising=False)
        assert main([*words, "--overwrite"]) == 1
    after = {file: file.read_bytes() for file in (good / "old").rglob("*") if file.is_file() and file.name != ".lock"}
    assert after == before
    assert main([*words, "--overwrite"]) == 0 and not (good / "old" / ".replaced").exists()


def test_a_failure_keeps_the_run_that_is_resumed(good, capsys, monkeypatch):
    words = ["fit", str(good / "a.star"), "-o", str(good / "kept"), "--set", "engine.iterations=1"]
    assert main(words) == 0
    before = {file: file.read_bytes() for file in (good / "kept").rglob("*.*") if file.name != "run.log"}
    spoiled(good, lambda data: data[7].fill(0))
    for more in (["--resume"], ["--overwrite"]):
        assert main([*words, *more]) == 1
        assert all(file.read_bytes() == content for file, content in before.items())
    assert not (good / "kept" / ".replaced").exists()
    capsys.readouterr()
    assert main([*words, "--seed", "5", "--resume"]) in (1, 2)
