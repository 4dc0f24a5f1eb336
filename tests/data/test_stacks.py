"""MRC stacks: every pixel type and layout reads as mrcfile reads it; damaged and foreign files are refused by name."""

import os
import pathlib

import mrcfile
import numpy as np
import pytest

from hetmodels.data import stacks as module
from hetmodels.data.mrc import read_header
from hetmodels.data.stacks import Stacks
from hetmodels.errors import DataError

DATA = os.environ.get("HETMODELS_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="HETMODELS_DATA is not set: no reference files")


def pixels(count: int, box: int = 8, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(50, 20, (count, box, box))).astype(dtype)


def write(path: pathlib.Path, images: np.ndarray) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(images)
    return path


def patch(path: pathlib.Path, offset: int, values: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(values)


def locate(folder: pathlib.Path, names: list[str], rows: list[int], datadir: pathlib.Path | None = None) -> Stacks:
    return Stacks.locate(names, np.array(rows), folder, datadir)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float16, np.float32])
@pytest.mark.parametrize("box", [8, 9])
def test_reads_every_pixel_type(tmp_path, dtype, box):
    images = pixels(5, box, dtype)
    write(tmp_path / "a.mrcs", images)
    read = locate(tmp_path, ["a.mrcs"] * 5, [0, 1, 2, 3, 4]).read(np.array([4, 0, 2]))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, images[[4, 0, 2]].astype(np.float32))


def test_reads_both_byte_orders_extended_headers_and_missing_stamps(tmp_path):
    images = pixels(3)
    raw = bytearray(write(tmp_path / "little.mrcs", images).read_bytes())
    raw[212:216] = bytes(4)
    (tmp_path / "nostamp.mrcs").write_bytes(raw)
    big = np.frombuffer(bytes(raw[:1024]), "<i4").byteswap().tobytes() + images.astype(">f4").tobytes()
    (tmp_path / "big.mrcs").write_bytes(big)
    raw[92:96] = np.int32(160).tobytes()
    (tmp_path / "extended.mrcs").write_bytes(raw[:1024] + bytes(160) + raw[1024:])
    for name in ("little", "nostamp", "big", "extended"):
        read = locate(tmp_path, [f"{name}.mrcs"] * 3, [0, 1, 2]).read(np.arange(3))
        np.testing.assert_array_equal(read, images)


def test_a_single_image_is_a_stack_of_one(tmp_path):
    image = pixels(1)[0]
    write(tmp_path / "one.mrc", image)
    np.testing.assert_array_equal(locate(tmp_path, ["one.mrc"], [0]).read(np.array([0]))[0], image)


def test_reads_many_files_in_any_order_with_few_of_them_open(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OPEN", 2)
    sets = [pixels(6, seed=s) for s in range(5)]
    for s, images in enumerate(sets):
        write(tmp_path / f"{s}.mrcs", images)
    rng = np.random.default_rng(0)
    file, row = rng.integers(0, 5, 40), rng.integers(0, 6, 40)
    found = locate(tmp_path, [f"{s}.mrcs" for s in file], row.tolist())
    expected = np.stack([sets[f][r] for f, r in zip(file, row, strict=True)])
    for index in (np.arange(40), rng.permutation(40), np.array([7, 7, 3, 7]), np.array([], np.int64)):
        np.testing.assert_array_equal(found.read(index), expected[index])
    assert len(found._open) == 2


def test_long_runs_are_copied_whole(tmp_path):
    images = pixels(30)
    write(tmp_path / "a.mrcs", images)
    found = locate(tmp_path, ["a.mrcs"] * 30, list(range(30)))
    index = np.r_[np.arange(5, 15), np.arange(20, 30), 2]
    np.testing.assert_array_equal(found.read(index), images[index])


def test_looks_in_datadir_table_folder_project_and_working_directory(tmp_path, monkeypatch):
    table = tmp_path / "project" / "Refine3D" / "job007"
    table.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    places = [
        (write(tmp_path / "here.mrcs", pixels(1)), "here.mrcs", None),
        (write(table / "beside.mrcs", pixels(1)), "beside.mrcs", None),
        (write(tmp_path / "project" / "Extract" / "x.mrcs", pixels(1)), "Extract/x.mrcs", None),
        (write(tmp_path / "far" / "Extract" / "x.mrcs", pixels(1)), "Extract/x.mrcs", tmp_path / "far"),
        (write(tmp_path / "flat" / "y.mrcs", pixels(1)), "/gone/Extract/y.mrcs", tmp_path / "flat"),
        (write(tmp_path / "flat" / "z.mrcs", pixels(1)), "Extract/other.mrcs", tmp_path / "flat" / "z.mrcs"),
    ]
    for path, text, datadir in places:
        assert locate(table, [text], [0], datadir).headers[0].path.resolve() == path.resolve()


def test_a_bare_name_is_not_taken_for_two_files(tmp_path):
    write(tmp_path / "x.mrcs", pixels(1))
    with pytest.raises(DataError, match="a/x.mrcs"):
        locate(tmp_path, ["a/x.mrcs", "b/x.mrcs"], [0, 0])


def test_missing_file_names_the_places_and_the_cure(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError) as error:
        locate(tmp_path, ["gone.mrcs"], [0], tmp_path / "images")
    assert str(tmp_path / "images" / "gone.mrcs") in str(error.value)
    assert str(tmp_path / "gone.mrcs") in str(error.value) and "--datadir" in str(error.value)


def test_datadir_must_exist_and_be_one_stack_for_one_name(tmp_path):
    write(tmp_path / "x.mrcs", pixels(1))
    with pytest.raises(DataError, match="no such folder"):
        locate(tmp_path, ["x.mrcs"], [0], tmp_path / "none")
    with pytest.raises(DataError, match="names 2"):
        locate(tmp_path, ["a.mrcs", "b.mrcs"], [0, 0], tmp_path / "x.mrcs")


DAMAGE = {
    "truncated": (lambda path: os.truncate(path, 1024 + 3 * 256 - 10), "truncated.*says 3 images.*room for 2"),
    "empty": (lambda path: os.truncate(path, 0), "1024 bytes of header, this one has 0"),
    "claims more": (lambda path: patch(path, 8, np.int32(50).tobytes()), "says 50 images"),
    "claims fewer": (lambda path: patch(path, 8, np.int32(1).tobytes()), "lies.*says 1 images"),
    "not square": (lambda path: patch(path, 0, np.array([4, 16], np.int32).tobytes()), "4 x 16"),
    "complex": (lambda path: patch(path, 12, np.int32(4).tobytes()), "mode 4"),
    "garbage": (lambda path: path.write_bytes(b"data_particles loop_ " * 100), "not an MRC stack"),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_damaged_files_are_refused(tmp_path, damage):
    act, message = DAMAGE[damage]
    path = write(tmp_path / "a.mrcs", pixels(3))
    act(path)
    with pytest.raises(DataError, match=message) as error:
        locate(tmp_path, ["a.mrcs"], [0])
    assert "a.mrcs" in str(error.value)


def test_a_few_bytes_too_many_are_ignored_with_a_note(tmp_path):
    path = write(tmp_path / "a.mrcs", pixels(3))
    path.write_bytes(path.read_bytes() + bytes(40))
    assert "40 bytes" in locate(tmp_path, ["a.mrcs"], [0]).notes[0]


def test_rows_past_the_end_are_refused(tmp_path):
    write(tmp_path / "a.mrcs", pixels(3))
    with pytest.raises(DataError, match=r"000004@a.mrcs.*row 1.*holds 3 images.*2 rows"):
        locate(tmp_path, ["a.mrcs"] * 3, [2, 3, 9])


def test_unequal_boxes_are_refused(tmp_path):
    write(tmp_path / "a.mrcs", pixels(2, 8))
    write(tmp_path / "b.mrcs", pixels(2, 10))
    with pytest.raises(DataError, match="b.mrcs.*10 x 10.*8 x 8"):
        locate(tmp_path, ["a.mrcs", "b.mrcs"], [0, 0])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (0.0, "all its pixels are zero"), (7.0, "value 7")],
)
def test_images_without_data_are_named(tmp_path, spoil, message):
    bad = np.full((8, 8), spoil, np.float32)
    bad[1:] = spoil if np.isfinite(spoil) else 3
    patch(write(tmp_path / "a.mrcs", pixels(12)), 1024 + 11 * 256, bad.tobytes())
    found = locate(tmp_path, ["a.mrcs"] * 12, list(range(12)))
    found.read(np.arange(11))
    with pytest.raises(DataError, match=rf"000012@a.mrcs.*row 11.*{message}"):
        found.read(np.array([3, 11]))


def test_opening_reads_no_pixels(tmp_path):
    path = write(tmp_path / "a.mrcs", pixels(1, 128))
    count = 100_000
    patch(path, 8, np.int32(count).tobytes())
    os.truncate(path, 1024 + count * 4 * 128**2)  # 6.5 GB of holes
    found = locate(tmp_path, ["a.mrcs"] * count, list(range(count)))
    assert len(found) == count and sum(found.sizes) == count * 4 * 128**2


@needs_data
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_reference_stack_reads_as_mrcfile_reads_it():
    for path in sorted(pathlib.Path(DATA, "stacks").rglob("*.mrc*")):
        if "truncated" in path.parts:
            continue
        header = read_header(path)
        with mrcfile.open(path, permissive=True) as file:
            expected = np.array(file.data).reshape(header.count, header.box, header.box)
        np.testing.assert_array_equal(header.memmap(), expected)


@needs_data
def test_the_truncated_reference_stack_is_refused():
    with pytest.raises(DataError, match=r"truncated.*11029 images.*room for 1 "):
        read_header(pathlib.Path(DATA, "stacks/truncated/00256_Ribosomes_1.70A.mrcs"))
