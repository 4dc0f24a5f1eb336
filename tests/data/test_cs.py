import io
import os
import pickle
from pathlib import Path

import numpy as np
import numpy.lib.recfunctions as rfn
import pytest

from hetmodels.data.metadata import Overrides, read_metadata
from hetmodels.errors import DataError

N = 6
FIELDS = [
    ("uid", "<u8"),
    ("blob/path", "S40"),
    ("blob/idx", "<u4"),
    ("blob/shape", "<u4", (2,)),
    ("blob/psize_A", "<f4"),
    ("blob/sign", "<f4"),
    ("ctf/exp_group_id", "<u4"),
    ("ctf/accel_kv", "<f4"),
    ("ctf/cs_mm", "<f4"),
    ("ctf/amp_contrast", "<f4"),
    ("ctf/df1_A", "<f4"),
    ("ctf/df2_A", "<f4"),
    ("ctf/df_angle_rad", "<f4"),
    ("ctf/phase_shift_rad", "<f4"),
    ("ctf/tilt_A", "<f4", (2,)),
    ("ctf/tetra_A", "<f4", (4,)),
    ("ctf/anisomag", "<f4", (4,)),
    ("ctf/bfactor", "<f4"),
    ("alignments3D/split", "<u4"),
    ("alignments3D/class", "<u4"),
    ("alignments3D/pose", "<f4", (3,)),
    ("alignments3D/shift", "<f4", (2,)),
    ("alignments3D/psize_A", "<f4"),
]


def shared(name):
    path = Path(os.environ.get("HETMODELS_DATA") or "absent") / "cs" / name
    if not path.is_file():
        pytest.skip(f"needs cs/{name} in the folder that HETMODELS_DATA names")
    return path


def table(**changes):
    array = np.zeros(N, FIELDS)
    rng = np.random.default_rng(0)
    array["uid"] = [2**63 + 11, 3, 2, 5, 7, 9]
    array["blob/path"] = [b">J1/a.mrcs"] * 3 + [b"J1/b.mrcs"] * 3
    array["blob/idx"] = [0, 1, 2, 0, 1, 2]
    array["blob/shape"], array["blob/psize_A"], array["blob/sign"] = 64, 2.0, -1
    array["ctf/exp_group_id"] = [7, 7, 4, 4, 7, 7]
    array["ctf/accel_kv"], array["ctf/cs_mm"], array["ctf/amp_contrast"] = 300, 2.7, 0.1
    array["ctf/df1_A"], array["ctf/df2_A"] = rng.uniform(1e4, 2e4, (2, N))
    array["ctf/df_angle_rad"] = 0.3
    array["alignments3D/split"] = [0, 1, 0, 1, 1, 0]
    array["alignments3D/pose"] = rng.normal(size=(N, 3))
    array["alignments3D/shift"] = rng.normal(size=(N, 2))
    array["alignments3D/psize_A"] = 4.0
    for name, values in changes.items():
        array[name.replace("__", "/")] = values
    return array


def save(path, array):
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=True)
    return path


def only(array, names):
    return rfn.repack_fields(array[list(names)])


def test_all_fields(tmp_path):
    array = table()
    m = read_metadata(save(tmp_path / "p.cs", array))
    assert (m.kind, len(m), m.contrast_sign) == ("cryosparc", N, -1)
    assert m.stack.tolist() == ["J1/a.mrcs"] * 3 + ["J1/b.mrcs"] * 3
    assert m.row.tolist() == [0, 1, 2, 0, 1, 2]
    assert m.uid.tolist() == array["uid"].tolist()
    assert m.subset.tolist() == [1, 2, 1, 2, 2, 1] and m.class_number.tolist() == [1] * N
    assert m.group.tolist() == [1, 1, 0, 0, 1, 1] and m.group_names == ("exposureGroup4", "exposureGroup7")
    assert np.all(m.box == 64) and np.all(m.pixel == 2)
    np.testing.assert_allclose(m.shift, -4.0 * array["alignments3D/shift"])
    w = array["alignments3D/pose"][0].astype(float)
    angle = np.linalg.norm(w)
    k = np.array([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]]) / angle
    expected = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
    np.testing.assert_allclose(m.rotation[0], expected.T, atol=1e-12)
    np.testing.assert_allclose(m.ctf["spherical"], 2.7e7)
    np.testing.assert_allclose(m.ctf["azimuth"], 0.3, rtol=1e-6)
    assert np.array_equal(m.ctf["stretch"], np.broadcast_to(np.eye(2), (N, 2, 2)))
    assert not m.ctf["beam_tilt"].any() and np.all(m.ctf["scale"] == 1)


def test_higher_aberrations_are_used_or_named(tmp_path):
    array = table(ctf__tilt_A=[2.7e4, -1.35e4], ctf__anisomag=[0.01, 0.002, -0.003, -0.01], ctf__bfactor=20)
    array["ctf/tetra_A"] = [1e4, 0, 0, 0]
    m = read_metadata(save(tmp_path / "p.cs", array))
    np.testing.assert_allclose(m.ctf["beam_tilt"][0], [1e-3, -0.5e-3], rtol=1e-5)
    np.testing.assert_allclose(m.ctf["stretch"][0], [[1.01, -0.003], [0.002, 0.99]], rtol=1e-5)
    assert np.all(m.ctf["bfactor"] == 20)
    (note,) = [note for note in m.notes if "tetra" in note]
    wavelength = 0.0196875
    assert float(note.split("up to ")[1].split(" rad")[0]) == pytest.approx(
        2 * np.pi * wavelength**3 * 1e4 * 0.25**4, rel=0.01
    )


def test_overrides(tmp_path):
    overrides = Overrides(pixel=3.0, voltage=200, cs=2.0, amplitude_contrast=0.07, invert=True)
    m = read_metadata(save(tmp_path / "p.cs", table()), overrides=overrides)
    assert np.all(m.pixel == 3) and m.contrast_sign == 1
    assert np.all(m.ctf["voltage"] == 200) and np.all(m.ctf["spherical"] == 2e7) and np.all(m.ctf["amplitude"] == 0.07)


def test_passthrough_is_joined_by_uid(tmp_path):
    array = table()
    ctf = [name for name in array.dtype.names if name.startswith("ctf/")]
    main = save(tmp_path / "p.cs", only(array, [name for name in array.dtype.names if name not in ctf]))
    alone = read_metadata(main)
    assert alone.ctf is None and "ctf/df1_A, ctf/accel_kv" in alone.ctf_reason
    order = np.random.default_rng(3).permutation(N)
    extra = np.concatenate([array, table(uid=np.arange(100, 100 + N))])[np.r_[order, N : 2 * N]]
    names = ["uid", *ctf, "blob/idx"]
    extra["blob/idx"] = 99
    m = read_metadata(main, passthrough=save(tmp_path / "pass.cs", only(extra, names)))
    whole = read_metadata(save(tmp_path / "whole.cs", array))
    assert np.array_equal(m.row, whole.row)
    for name, values in whole.ctf.items():
        assert np.array_equal(m.ctf[name], values), name
    short = save(tmp_path / "short.cs", only(array, names)[1:])
    with pytest.raises(DataError, match="1 of the 6 particles .* are not in this passthrough file"):
        read_metadata(main, passthrough=[short])
    with pytest.raises(DataError, match="no such passthrough file"):
        read_metadata(main, passthrough=tmp_path / "none.cs")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a[:0], "0 rows"),
        (lambda a: a["uid"].astype("<f8"), "plain numpy array"),
        (lambda a: a.astype([(n, "O" if n == "blob/path" else a.dtype[n]) for n in a.dtype.names]), "Python objects"),
        (lambda a: only(a, ["uid", "ctf/df1_A"]), "needs blob/path and blob/idx; it has ctf"),
        (
            lambda a: np.array([(1, b"m.mrc", (8, 8, 8))], [("uid", "u8"), ("map/path", "S9"), ("map/shape", "u4", 3)]),
            "volume",
        ),
        (lambda a: np.array([(1, b"m.mrc")], [("uid", "u8"), ("micrograph_blob/path", "S9")]), "micrographs"),
    ],
)
def test_what_is_no_particle_file_is_refused_in_words(tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        read_metadata(save(tmp_path / "p.cs", change(table())))


def test_damaged_and_compressed_files(tmp_path):
    path = save(tmp_path / "p.cs", table())
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="numpy array without Python objects"):
        read_metadata(path)
    path.write_bytes(b"\x94CSDAT" + b"\0" * 100)
    with pytest.raises(DataError, match="compressed form"):
        read_metadata(path)


def test_mixed_signs_and_broken_poses(tmp_path):
    array = table()
    array["blob/sign"][2] = 1
    with pytest.raises(DataError, match="blob/sign must be 1 or -1 and the same"):
        read_metadata(save(tmp_path / "p.cs", array))
    array = table()
    array["alignments3D/pose"][4, 1] = np.nan
    with pytest.raises(DataError, match=r"angles is NaN or infinite in 1 of 6 rows \(row 4, counted from 0\)"):
        read_metadata(save(tmp_path / "p.cs", array))


def test_shared_particles_agree_with_their_truth():
    m = read_metadata(shared("cryosparc_P12_J24_001_particles.cs"))
    rotation, fraction = pickle.loads(shared("pose.cs.pkl").read_bytes())
    truth = np.load(io.BytesIO(_array_bytes(shared("ctf2.pkl"))))
    np.testing.assert_allclose(m.rotation, rotation, atol=5e-7)
    np.testing.assert_allclose(-m.shift / (m.box * m.pixel)[:, None], fraction, atol=1e-7)
    assert np.array_equal(m.box, truth[:, 0].astype(int)) and np.array_equal(m.pixel.astype(np.float32), truth[:, 1])
    columns = {"defocus_u": (2, 1), "defocus_v": (3, 1), "voltage": (5, 1), "spherical": (6, 1e7), "amplitude": (7, 1)}
    for name, (column, unit) in columns.items():
        assert np.array_equal((m.ctf[name] / unit).astype(np.float32), truth[:, column]), name
    np.testing.assert_allclose(np.rad2deg(m.ctf["azimuth"]), truth[:, 4], atol=1e-5)
    assert len(np.unique(m.stack)) == 50 and m.contrast_sign == -1


def _array_bytes(path):
    buffer = io.BytesIO()
    np.save(buffer, pickle.loads(path.read_bytes()))
    return buffer.getvalue()


def test_shared_two_dimensional_alignments():
    m = read_metadata(shared("cryosparc_J2_particles_exported.cs"))
    assert m.rotation is None and "only 2-D alignments" in m.pose_reason
    assert m.stack[0] == "J1/imported/000090334788266266069_18jam15b_0345_ali_DW.mrcs"
    assert m.ctf is not None and len(m) == 22
