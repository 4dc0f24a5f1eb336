import codecs
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from hetmodels.data.pickles import load_arrays, read_ctf, read_poses
from hetmodels.errors import DataError


def saved(tmp_path, content, protocol=None):
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f8", "<i4"])
def test_arrays_of_every_protocol(tmp_path, protocol, dtype):
    arrays = (np.arange(18).reshape(2, 3, 3).astype(dtype), np.asfortranarray(np.ones((2, 2), dtype)))
    for content in (arrays, list(arrays)):
        back = load_arrays(saved(tmp_path, content, protocol))
        assert all(np.array_equal(a, b) for a, b in zip(back, arrays, strict=True))
    assert np.array_equal(load_arrays(saved(tmp_path, arrays[0], protocol)), arrays[0])


def test_names_of_older_numpy_are_known(tmp_path):
    data = pickle.dumps(np.arange(3.0), protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path = tmp_path / "p.pkl"
    path.write_bytes(data)
    assert np.array_equal(load_arrays(path), np.arange(3.0))


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "content",
    [
        Call(os.system, "touch executed"),
        Call(eval, "1"),
        Call(getattr, "x", "upper"),
        Call(np.load, "x"),
        Call(np.lib.format.open_memmap, "executed"),
        (np.zeros((1, 3, 3)), Call(os.getcwd)),
        Call(codecs.decode, b"a", "rot13"),
        Path("x"),
    ],
    ids=["system", "eval", "getattr", "numpy.load", "memmap", "inside", "codec", "object"],
)
def test_nothing_is_executed(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="numpy arrays only, this one is refused"):
        load_arrays(saved(tmp_path, content))
    assert [path.name for path in tmp_path.iterdir()] == ["p.pkl"]


@pytest.mark.parametrize("content", [{"a": 1}, "text", [], np.array([{}], object), (np.zeros(3), 2.0), np.array(["a"])])
def test_other_content_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="arrays of numbers|numpy arrays only"):
        load_arrays(saved(tmp_path, content))


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"garbage", b"\x80\x05\x95", b"(lp0\nI1\nI", bytes(range(256))])
def test_damaged_files_are_refused(tmp_path, data):
    path = tmp_path / "p.pkl"
    path.write_bytes(data)
    with pytest.raises(DataError, match="numpy arrays only"):
        load_arrays(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_arrays(tmp_path / "none.pkl")


def test_poses(tmp_path):
    eyes = np.tile(np.eye(3), (4, 1, 1))
    rotation, origin = read_poses(saved(tmp_path, (eyes, np.full((4, 2), 0.1))))
    assert np.array_equal(rotation, eyes) and np.all(origin == 0.1)
    assert read_poses(saved(tmp_path, eyes))[1] is None
    with pytest.raises(DataError, match=r"found \(4, 3, 3\), \(3, 2\)"):
        read_poses(saved(tmp_path, (eyes, np.zeros((3, 2)))))
    with pytest.raises(DataError, match="looks like a CTF file"):
        read_poses(saved(tmp_path, np.zeros((4, 9))))
    with pytest.raises(DataError, match="must be rotation matrices, row 2"):
        read_poses(saved(tmp_path, np.where(np.arange(4)[:, None, None] == 2, -1, 1) * eyes))


def test_ctf(tmp_path):
    row = [128, 1.5, 1e4, 9e3, 90, 300, 2.7, 0.1, 45]
    ctf = read_ctf(saved(tmp_path, np.tile(np.float32(row), (3, 1))))
    assert ctf["box"][0] == 128 and ctf["pixel"][0] == 1.5 and ctf["defocus_v"][0] == 9e3
    assert ctf["azimuth"][0] == np.pi / 2 and ctf["phase_shift"][0] == np.pi / 4
    assert ctf["spherical"][0] == pytest.approx(2.7e7)
    with pytest.raises(DataError, match=r"one array \(N, 9\) of numbers, found an array \(3, 8\)"):
        read_ctf(saved(tmp_path, np.zeros((3, 8))))
    with pytest.raises(DataError, match="found 2 arrays"):
        read_ctf(saved(tmp_path, (np.zeros((3, 3, 3)), np.zeros((3, 2)))))
