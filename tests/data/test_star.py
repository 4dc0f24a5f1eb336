import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile

from hetmodels.data.block import new_block
from hetmodels.data.star import open_star, read_star
from hetmodels.errors import DataError

OPTICS = "data_optics\n\nloop_ \n_rlnOpticsGroup #1 \n_rlnVoltage #2 \n           1   300.000000 \n \n\n"
PARTICLES = (
    "# version 30001\n\ndata_particles\n\nloop_ \n_rlnImageName #1 \n_rlnDefocusU #2 \n_rlnOpticsGroup #3 \n"
    "000001@a/b.mrcs  10000.500000            1 \n000002@a/b.mrcs  -1.5e+03  1\n"
)


def shared():
    if not os.environ.get("HETMODELS_DATA"):
        pytest.skip("HETMODELS_DATA does not name the folder of reference files")
    return Path(os.environ["HETMODELS_DATA"])


def written(tmp_path, text):
    path = tmp_path / "t.star"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def particles(path):
    block = open_star(path).find("particles")
    assert block is not None
    return block


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("  ", "\t"),
        lambda text: text.replace(" #1", "").replace(" #2", "").replace(" #3", ""),
        lambda text: text.replace("#2 \n", "#2 [underfocus, positive]\n"),
        lambda text: text.rstrip("\n "),
        lambda text: text.replace("\n000002", "\n\n# a remark\n  000002"),
        lambda text: "\ufeff# made by hand\n\n" + text,
        lambda text: text.replace("loop_ \n", "\nloop_\n\n"),
    ],
    ids=["plain", "crlf", "tabs", "no numbers", "comments", "no last newline", "gaps", "bom", "blank lines"],
)
def test_the_ways_a_table_is_written_do_not_matter(tmp_path, change):
    for text in (OPTICS + PARTICLES, PARTICLES + "\n\n" + OPTICS):
        path = written(tmp_path, change(text))
        block = particles(path)
        assert list(block.text("_rlnImageName")) == ["000001@a/b.mrcs", "000002@a/b.mrcs"]
        assert list(block.number("_rlnDefocusU")) == [10000.5, -1500.0]
        assert list(open_star(path).find("optics").number("_rlnVoltage")) == [300.0]


def test_gzip_is_read(tmp_path):
    path = written(tmp_path, gzip.compress((OPTICS + PARTICLES).encode()))
    assert len(particles(path)) == 2
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="gzip file is damaged"):
        open_star(path)


def test_a_row_that_begins_like_a_block_is_a_row(tmp_path):
    path = written(tmp_path, PARTICLES.replace("000001@a/b.mrcs", "data_001.mrc"))
    assert list(particles(path).text("_rlnImageName"))[0] == "data_001.mrc"


def test_quotes_pairs_and_empty_loops(tmp_path):
    path = written(
        tmp_path,
        "data_pairs\n_a 'two words' # remark\n_b \"\"\n_c it's\n\ndata_loop\nloop_\n_x\n_y\n'a b' 1\n\"\" 2\n\n"
        "data_none\nloop_\n_x #1\n\ndata_bare\nloop_\n\ndata_nothing\n",
    )
    tables = read_star(path)
    assert tables["pairs"].iloc[0].tolist() == ["two words", "", "it's"]
    assert tables["loop"]["_x"].tolist() == ["a b", ""]
    assert [len(tables[name]) for name in ("none", "bare", "nothing")] == [0, 0, 0]
    assert list(open_star(path).find("loop").number("_y")) == [1, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PARTICLES.replace("10000.500000", ""), r"row 0 \(line 9\) has 2 \(1 such rows\)"),
        (PARTICLES + "000003@a/b.mrcs 1 1 extra\n", "row 2 .* has 4"),
        (PARTICLES + "000003@a/b.mrcs 'a b' 1 1\n", "row 2 .* has 4"),
        (PARTICLES + "loop_\n_x\n1\n", "a block holds one table"),
        (PARTICLES + "data_particles\n_a 1\n", "two called data_particles"),
        (PARTICLES.replace("_rlnOpticsGroup", "_rlnDefocusU"), "_rlnDefocusU appears twice"),
        ("data_a\n_x 1 2\n", "one value after a label"),
        ("data_a\nloop_\n_x 1\n", "no value after a label of a loop"),
        ("data_a\nloop_\n1 2\n", "rows but no labels"),
        ("data_a\n1 2\n", "expected a label, loop_ or a comment, found '1'"),
        ("nothing here\n", "blocks that begin with data_"),
    ],
)
def test_malformed_files_are_refused_in_words(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        open_star(written(tmp_path, text))


def test_what_is_no_number_is_named_and_nan_is_one(tmp_path):
    path = written(tmp_path, PARTICLES.replace("-1.5e+03", "12,5"))
    with pytest.raises(DataError, match=r"_rlnDefocusU must hold numbers, row 1 \(line 10\) holds '12,5'"):
        particles(path).number("_rlnDefocusU")
    path = written(tmp_path, PARTICLES.replace("-1.5e+03", "nan").replace("10000.500000", "-inf"))
    values = particles(path).number("_rlnDefocusU")
    assert values[0] == -np.inf and np.isnan(values[1])


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_star(tmp_path / "none.star")
    with pytest.raises(DataError, match="is a folder"):
        open_star(tmp_path)


def test_numbers_are_exact_to_the_last_digit(tmp_path):
    values = np.random.default_rng(1).normal(size=2000) * 10.0 ** np.arange(2000).clip(0, 12)
    text = "data_particles\nloop_\n_x\n_y\n" + "".join(f"{v!r} a\n" for v in values.tolist())
    np.testing.assert_allclose(particles(written(tmp_path, text)).number("_x"), values, rtol=3e-16)


def test_the_fast_path_agrees_with_starfile(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(3000, 5)).round(6), columns=[f"x{i}" for i in range(5)])
    frame.insert(2, "rlnImageName", [f"{i + 1:06d}@Extract/job{i % 7}/s.mrcs" for i in range(3000)])
    path = tmp_path / "t.star"
    starfile.write({"optics": frame[:2], "particles": frame}, path)
    block, theirs = particles(path), starfile.read(path, always_dict=True)["particles"]
    ours = block.columns(text=["_rlnImageName"], numbers=[f"_x{i}" for i in range(5)])
    for name, values in ours.items():
        assert np.array_equal(values, theirs[name[1:]].to_numpy())


def test_unedited_files_are_written_byte_for_byte(tmp_path):
    path = written(tmp_path, "# remark\n" + OPTICS + PARTICLES + "\n# last words\n")
    star = open_star(path)
    star.write(tmp_path / "copy.star")
    assert (tmp_path / "copy.star").read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.star", "t.star"]


def test_edited_blocks_copy_the_other_fields_as_text(tmp_path):
    star = open_star(written(tmp_path, OPTICS + PARTICLES + "000003@a/b.mrcs 007 1\n\n# last words\n"))
    block = star.find("particles")
    new = block.edited(np.array([2, 0]), {"_rlnOpticsGroup": ["2", "3"], "_hetName": ["a b", ""]})
    star.with_block(new).write(tmp_path / "new.star")
    text = (tmp_path / "new.star").read_text()
    assert '000003@a/b.mrcs 007 2 "a b"\n000001@a/b.mrcs 10000.500000 3 ""\n' in text
    assert OPTICS in text and "# last words" in text
    back = starfile.read(tmp_path / "new.star", always_dict=True)["particles"]
    assert back["rlnOpticsGroup"].tolist() == [2, 3]
    less = block.edited(drop=["_rlnDefocusU"])
    assert less.labels == ("_rlnImageName", "_rlnOpticsGroup")
    assert less.rows.splitlines()[2] == b"000003@a/b.mrcs 1"
    only_added = block.edited(columns={"_hetClass": ["1", "2", "1"]})
    assert only_added.rows.splitlines()[0].startswith(b"000001@a/b.mrcs  10000.500000            1")


def test_text_that_is_not_utf8_survives(tmp_path):
    path = written(tmp_path, PARTICLES.encode().replace(b"a/b", b"a/\xe4"))
    star = open_star(path)
    name = star.find("particles").text("_rlnImageName")[0]
    kept = star.find("particles").edited(columns={"_copy": [name, name], "_rlnDefocusU": ["1", "2"]})
    assert kept.rows.splitlines()[0] == b"000001@a/\xe4.mrcs 1 1 000001@a/\xe4.mrcs"


def test_new_blocks_are_read_back(tmp_path):
    block = new_block("optics", {"_a": ["1", "x y"], "_b": ["", "2"]})
    path = written(tmp_path, block.head + block.rows + block.tail)
    assert open_star(path).find("optics").frame().to_numpy().tolist() == [["1", ""], ["x y", "2"]]


def test_every_shared_star_file_agrees_with_starfile():
    refused = {"planetary_sample.star"}
    folder = shared()
    files = sorted(folder.rglob("*.star"))
    assert len(files) > 25
    for path in files:
        if path.name in refused:
            with pytest.raises(DataError, match="a block holds one table"):
                open_star(path)
            continue
        ours = read_star(path)
        theirs = starfile.read(path, always_dict=True, parse_as_string=[])
        assert list(ours) == list(theirs), path
        for name, table in theirs.items():
            table = pd.DataFrame([table]) if isinstance(table, dict) else table
            assert list(ours[name].columns) == [f"_{column}" for column in table.columns], (path, name)
            assert len(ours[name]) == len(table) or not len(table.columns)
            for column in table.columns:
                same_values(ours[name][f"_{column}"], table[column], f"{path}, {name}, {column}")


def same_values(text, values, where):
    """starfile turns what it can into numbers, and empty fields into NaN."""
    for ours, theirs in zip(text, values, strict=True):
        if isinstance(theirs, str):
            assert ours == theirs, where
        elif pd.isna(theirs):
            assert ours in ("", "nan"), where
        else:
            assert float(ours) == pytest.approx(float(theirs), rel=1e-12), where
