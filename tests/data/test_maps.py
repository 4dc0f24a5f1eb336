"""Reading and writing maps: axis order, origin, modes, refusals; real files where they are at hand."""

import os
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest

from hetmodels.data.maps import cubed, read_map, read_raw, write_map
from hetmodels.errors import DataError


def real(name: str) -> Path:
    folder = os.environ.get("HETMODELS_DATA")
    path = Path(folder or "absent") / "maps" / name
    if not path.exists():
        pytest.skip(f"needs maps/{name} in the folder that HETMODELS_DATA names")
    return path


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)


def test_round_trip(tmp_path: Path, values: np.ndarray) -> None:
    path = tmp_path / "a.mrc"
    write_map(path, values, 1.7, origin=np.array([-3.0, 2.0, 8.5]))
    back = read_map(path)
    np.testing.assert_array_equal(back.values, values)
    assert back.spacing == pytest.approx(1.7, rel=1e-6)
    np.testing.assert_allclose(back.origin, [-3, 2, 8.5])
    assert [p.name for p in tmp_path.iterdir()] == ["a.mrc"]
    assert mrcfile.validate(path)


def test_same_map_same_file(tmp_path: Path, values: np.ndarray) -> None:
    for name in ("a.mrc", "b.mrc"):
        write_map(tmp_path / name, values, 2.0)
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()


@pytest.mark.parametrize("axes", [(1, 2, 3), (2, 1, 3), (3, 2, 1), (2, 3, 1), (3, 1, 2), (1, 3, 2)])
def test_any_axis_order_is_read_as_zyx(tmp_path: Path, values: np.ndarray, axes: tuple[int, int, int]) -> None:
    """A file stores (section, row, column) = (maps, mapr, mapc); NSTART follows the columns, the cell follows x y z."""
    section, row, column = axes[::-1]
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(np.ascontiguousarray(values.transpose([3 - section, 3 - row, 3 - column])))
        file.header.mapc, file.header.mapr, file.header.maps = axes
        file.header.mx, file.header.my, file.header.mz = values.shape[::-1]
        file.header.cella = (7 * 1.0, 6 * 2.0, 5 * 3.0)
        start = {1: 10, 2: 20, 3: 30}
        file.header.nxstart, file.header.nystart, file.header.nzstart = (start[a] for a in axes)
    back = read_raw(tmp_path / "a.mrc")
    np.testing.assert_array_equal(back.values, values)
    np.testing.assert_allclose(back.voxel, [1, 2, 3])
    np.testing.assert_allclose(back.origin, [10, 40, 90])


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float16])
def test_other_modes(tmp_path: Path, dtype: type) -> None:
    stored: np.ndarray = np.arange(27).reshape(3, 3, 3).astype(dtype)
    with mrcfile.new(tmp_path / "a.mrc", data=stored) as file:
        file.voxel_size = 3.0
    back = read_map(tmp_path / "a.mrc")
    assert back.values.dtype == np.float32
    np.testing.assert_array_equal(back.values, stored)


def test_refusals_name_the_fault(tmp_path: Path, values: np.ndarray) -> None:
    def refuse(words: str, path: Path) -> None:
        with pytest.raises(DataError, match=words) as caught:
            read_map(path)
        assert path.name in str(caught.value)

    refuse("no such file", tmp_path / "none.mrc")
    (tmp_path / "text.mrc").write_text("not a map at all")
    refuse("not a readable MRC map", tmp_path / "text.mrc")
    write_map(tmp_path / "ok.mrc", values, 1.0)
    (tmp_path / "short.mrc").write_bytes((tmp_path / "ok.mrc").read_bytes()[:-100])
    refuse("not a readable MRC map", tmp_path / "short.mrc")
    mrcfile.new(tmp_path / "image.mrc", data=values[0]).close()
    refuse("an image of 6 x 7", tmp_path / "image.mrc")
    mrcfile.new(tmp_path / "complex.mrc", data=values.astype(np.complex64)).close()
    refuse("real values", tmp_path / "complex.mrc")
    mrcfile.new(tmp_path / "nan.mrc", data=np.where(values > 2, np.nan, values).astype(np.float32)).close()
    refuse("must be finite", tmp_path / "nan.mrc")
    with pytest.raises(DataError, match="finite"):
        write_map(tmp_path / "x.mrc", np.full((3, 3, 3), np.inf), 1.0)


def test_cubed_keeps_the_centre() -> None:
    for shape in [(4, 7, 5), (8, 3, 6)]:
        values = np.zeros(shape)
        values[tuple(n // 2 for n in shape)] = 1
        cube = cubed(values)
        assert cube.shape == (max(shape),) * 3
        assert cube[(max(shape) // 2,) * 3] == 1


def test_emdb_maps() -> None:
    large = read_map(real("emd_5625.map"))
    assert large.values.shape == (56, 56, 56)
    assert large.spacing == pytest.approx(4.23)
    np.testing.assert_allclose(large.origin, [-28 * 4.23] * 3, rtol=1e-6)
    full, half = read_map(real("emd_3197.map")), read_map(real("emd_3197_f16.mrc"))
    np.testing.assert_allclose(full.origin, [-22.8, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(half.origin, 0)
    off = np.abs(half.values - full.values) > 5e-4 * np.abs(full.values) + 1e-3
    assert off.sum() == 2  # a rounding fault of the program that wrote the float16 file


def test_crystal_map_with_permuted_axes_is_read_but_is_no_cubic_map() -> None:
    path = real("5i55_tiny.ccp4")
    raw = read_raw(path)
    other = gemmi.read_ccp4_map(str(path))
    other.setup(float("nan"), gemmi.MapSetup.ReorderOnly)
    np.testing.assert_array_equal(raw.values, np.array(other.grid).transpose(2, 1, 0))
    np.testing.assert_allclose(raw.voxel, [29.45 / 60, 10.5 / 24, 29.7 / 60], rtol=1e-6)
    np.testing.assert_allclose(raw.origin, np.array([-8, 50, 40]) * raw.voxel, rtol=1e-6)
    with pytest.raises(DataError, match="must be cubes"):
        read_map(path)
