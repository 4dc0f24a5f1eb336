import dataclasses
import os
import pickle
import shutil
import subprocess

import numpy as np
import pytest
import starfile
from star_tables import OPTICS, old, shared, stack, star
from test_cs import save, table

from hetmodels.data.export import write_particles
from hetmodels.data.metadata import Overrides, read_metadata
from hetmodels.data.star import open_star
from hetmodels.errors import UsageError

LATENT = np.array([0.1, -2.5e-7, 3.0, 1 / 3])


def same(one, two, skip=()):
    """Equal as far as a table says it; texts of the notes and the path are the file's own."""
    for field in dataclasses.fields(one):
        if field.name in ("path", "kind", "notes", "table", "uid", "group_names", *skip):
            continue
        a, b = getattr(one, field.name), getattr(two, field.name)
        if isinstance(a, dict):
            for name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-6, err_msg=name)
        elif isinstance(a, np.ndarray) and a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6, err_msg=field.name)
        else:
            assert np.array_equal(a, b), field.name


def test_star_rows_come_back_as_text_with_columns_added(tmp_path):
    path = star(tmp_path)
    text = path.read_text().replace("10000 9000", "10000.00   9e3 ")
    path.write_text("# made by hand\n" + text)
    columns = {"_hetLatent1": LATENT, "hetClass": np.array([1, 2, 1, 2]), "_hetHeldOut": np.array([True, False] * 2)}
    written = write_particles(read_metadata(path), tmp_path / "out.star", columns)
    assert written == [tmp_path / "out.star"]
    before, after = path.read_text().splitlines(), (tmp_path / "out.star").read_text().splitlines()
    rows = [line for line in before if "@" in line]
    ends = [" 0.1 1 1", " -2.5e-07 2 0", " 3 1 1", " 0.3333333 2 0"]
    assert [line for line in after if "@" in line] == [row.rstrip() + end for row, end in zip(rows, ends, strict=True)]
    assert after[0] == "# made by hand" and OPTICS.format(labels="", first="", second="") in "\n".join(after)
    same(read_metadata(path), read_metadata(tmp_path / "out.star"))
    frames = starfile.read(tmp_path / "out.star")
    assert frames["particles"]["hetClass"].tolist() == [1, 2, 1, 2] and len(frames["optics"]) == 2


def test_rows_are_chosen_and_ordered(tmp_path):
    m = read_metadata(star(tmp_path))
    write_particles(m, tmp_path / "out.star", {"_hetLatent1": LATENT[:2]}, index=np.array([3, 0]))
    back = read_metadata(tmp_path / "out.star")
    assert back.row.tolist() == [3, 0] and back.group.tolist() == [0, 0]


def test_replaced_columns_keep_what_the_input_said(tmp_path):
    m = read_metadata(star(tmp_path, rlnClassNumber=["7", "007", "9", "9"]))
    new = {"rlnClassNumber": np.array([1, 2, 1, 2]), "rlnAngleRot": np.full(4, 12.3456789)}
    write_particles(m, tmp_path / "out.star", new)
    block = open_star(tmp_path / "out.star").find("particles")
    assert block.text("_rlnClassNumber").tolist() == ["1", "2", "1", "2"]
    assert block.text("_hetInputClassNumber").tolist() == ["7", "007", "9", "9"]
    assert block.text("_rlnAngleRot")[0] == "12.345679" and block.text("_hetInputAngleRot")[0] == "10"
    again = write_particles(read_metadata(tmp_path / "out.star"), tmp_path / "again.star", new)
    assert open_star(again[0]).find("particles").labels.count("_hetInputClassNumber") == 1


def test_tables_without_optics_and_single_rows(tmp_path):
    m = read_metadata(old(tmp_path))
    write_particles(m, tmp_path / "out.star", {"_hetLatent1": LATENT})
    same(m, read_metadata(tmp_path / "out.star"))
    single = tmp_path / "single.star"
    single.write_text("data_\n_rlnImageName 1@a\n_rlnMicrographName 'two words'\n")
    write_particles(read_metadata(single), tmp_path / "out.star", {"_hetClass": np.array([1])})
    back = read_metadata(tmp_path / "out.star")
    assert back.micrograph.tolist() == ["two words"]


def test_cryosparc_comes_back_with_uids_and_a_star_beside(tmp_path):
    array = table(blob__sign=-1)
    m = read_metadata(save(tmp_path / "p.cs", array))
    index = np.array([4, 1])
    written = write_particles(
        m, tmp_path / "out.star", {"hetLatent1": np.array([0.5, 1.5]), "rlnClassNumber": np.array([2, 3])}, index
    )
    assert written == [tmp_path / "out.cs", tmp_path / "out.star"]
    back = np.load(tmp_path / "out.cs", allow_pickle=False)
    assert back["het/Latent1"].tolist() == [0.5, 1.5] and back["alignments3D/class"].tolist() == [1, 2]
    assert back["het/Input/alignments3D/class"].tolist() == [0, 0]
    for name in array.dtype.names:
        if name != "alignments3D/class":
            assert np.array_equal(back[name], array[name][index]), name
    beside = read_metadata(tmp_path / "out.star")
    assert beside.class_number.tolist() == [2, 3] and beside.contrast_sign == -1
    write_particles(m, tmp_path / "all.cs", {})
    same(m, read_metadata(tmp_path / "all.star"))
    same(m, read_metadata(tmp_path / "all.cs"))


def test_new_poses_reach_both_files(tmp_path):
    m = read_metadata(save(tmp_path / "p.cs", table()))
    n = len(m)
    angles = {f"_rlnAngle{a}": np.linspace(5, 80, n) * s for a, s in (("Rot", 1), ("Tilt", 2), ("Psi", -1))}
    write_particles(
        m, tmp_path / "out.cs", angles | {"_rlnOriginXAngst": np.full(n, 6.0), "_rlnOriginYAngst": -np.ones(n)}
    )
    one, two = read_metadata(tmp_path / "out.cs"), read_metadata(tmp_path / "out.star")
    np.testing.assert_allclose(one.rotation, two.rotation, atol=1e-6)
    np.testing.assert_allclose(one.shift, np.tile([-6.0, 1.0], (n, 1)), rtol=1e-6)
    np.testing.assert_allclose(two.shift, one.shift, rtol=1e-6)
    kept = np.load(tmp_path / "out.cs")["het/Input/alignments3D/pose"]
    assert np.array_equal(kept, table()["alignments3D/pose"])


def test_pickled_sets_become_star_files(tmp_path):
    stack(tmp_path / "a.mrcs", 3, 16)
    ctf = np.tile([16, 2.0, 1e4, 9e3, 30, 300, 2.7, 0.1, 0], (3, 1))
    (tmp_path / "ctf.pkl").write_bytes(pickle.dumps(ctf))
    (tmp_path / "pose.pkl").write_bytes(pickle.dumps((np.tile(np.eye(3), (3, 1, 1)), np.full((3, 2), 0.1))))
    m = read_metadata(tmp_path / "a.mrcs", poses=tmp_path / "pose.pkl", ctf=tmp_path / "ctf.pkl")
    assert write_particles(m, tmp_path / "out.star", {"hetClass": np.ones(3, int)}) == [tmp_path / "out.star"]
    same(m, read_metadata(tmp_path / "out.star"))


def test_wrong_calls(tmp_path):
    m = read_metadata(star(tmp_path))
    with pytest.raises(UsageError, match="_hetClass must have one entry for each of 4 rows"):
        write_particles(m, tmp_path / "out.star", {"hetClass": np.ones(3)})
    with pytest.raises(UsageError, match="is no cryoSPARC file"):
        write_particles(m, tmp_path / "out.cs", {})
    with pytest.raises(UsageError, match="ends in .star or .cs"):
        write_particles(m, tmp_path / "out.txt", {})
    assert [path.name for path in tmp_path.iterdir()] == ["p.star"]


def test_shared_tables_come_back_row_for_row(tmp_path):
    folder, count = shared(), 0
    for path in sorted(folder.rglob("*.star")) + sorted(folder.rglob("*particles*.cs")):
        try:
            m = read_metadata(path, overrides=Overrides(no_ctf=True, pixel=2.0))
        except ValueError:
            continue
        count += 1
        write_particles(m, tmp_path / f"out{path.suffix}", {"hetLatent1": np.arange(len(m)) / 7})
        back = read_metadata(tmp_path / f"out{path.suffix}", overrides=Overrides(no_ctf=True, pixel=2.0))
        same(m, back)
        if path.suffix == ".star":
            theirs = starfile.read(tmp_path / "out.star", always_dict=True)
            before = starfile.read(path, always_dict=True)
            for name, frame in before.items():
                frame = theirs[name][list(frame)].compare(frame) if hasattr(frame, "columns") else []
                assert not len(frame), path
    assert count >= 18


def test_relion_reads_the_table(tmp_path):
    program = shutil.which("relion_star_printtable")
    if program is None:
        pytest.skip("needs relion_star_printtable (RELION)")
    m = read_metadata(star(tmp_path))
    write_particles(m, tmp_path / "out.star", {"hetLatent1": LATENT, "hetClass": np.array([1, 2, 1, 2])})
    out = subprocess.run(
        [program, str(tmp_path / "out.star"), "data_particles", "rlnImageName", "rlnOpticsGroup"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    ).stdout
    assert [line.split()[0] for line in out.splitlines() if "@" in line] == [
        "1@a.mrcs",
        "2@a.mrcs",
        "3@sub/b.mrcs",
        "4@sub/b.mrcs",
    ]
