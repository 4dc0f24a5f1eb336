"""The same four particles through every format: places of atoms and CTF agree, and every convention matters."""

import pickle

import jax
import numpy as np
import numpy.lib.recfunctions as rfn
import pytest
from scipy.spatial.transform import Rotation
from star_tables import COLUMNS, old, stack, star

from hetmodels.data.metadata import read_metadata
from hetmodels.errors import DataError
from hetmodels.imaging.ctf import Ctf

ATOMS = np.random.default_rng(5).normal(size=(7, 3)) * [20, 12, 30]


def seen(m):
    """What the images show: places of the atoms [Å] and the CTF at some frequencies, sign of contrast included."""
    places = np.einsum("nij,aj->nai", m.rotation, ATOMS)[:, :, :2] + m.shift[:, None]
    points = np.random.default_rng(6).normal(size=(30, 2)) / 20
    with jax.enable_x64(True):
        transfer = np.asarray(Ctf(**m.ctf).transfer(points))
    return np.concatenate([places.reshape(len(m), -1), 100 * transfer * (m.contrast_sign or 1)], axis=1)


def truth(tmp_path):
    m = read_metadata(old(tmp_path, rlnPhaseShift="20", rlnImageName=[f"{i}@a.mrcs" for i in (1, 2, 3, 4)]))
    return m, m.rotation, m.shift


def as_cs(tmp_path, *, transpose=True, sign=-1.0, degrees=False, phase=1.0):
    m, rotation, shift = truth(tmp_path)
    fields = [("uid", "u8"), ("blob/path", "S9"), ("blob/idx", "u4"), ("blob/psize_A", "f8"), ("blob/sign", "f4")]
    fields += [("alignments3D/pose", "f8", 3), ("alignments3D/shift", "f8", 2), ("alignments3D/psize_A", "f8")]
    names = {"df1_A": "defocus_u", "df2_A": "defocus_v", "df_angle_rad": "azimuth", "accel_kv": "voltage"}
    names |= {"cs_mm": "spherical", "amp_contrast": "amplitude", "phase_shift_rad": "phase_shift"}
    array = np.zeros(4, [*fields, *((f"ctf/{name}", "f8") for name in names)])
    array["blob/path"], array["blob/idx"], array["blob/psize_A"], array["blob/sign"] = b"a.mrcs", range(4), m.pixel, 1
    turned = np.swapaxes(rotation, 1, 2) if transpose else rotation
    array["alignments3D/pose"] = Rotation.from_matrix(turned).as_rotvec()
    array["alignments3D/shift"], array["alignments3D/psize_A"] = sign * shift / 4, 4
    for name, ours in names.items():
        array[f"ctf/{name}"] = m.ctf[ours] * {"cs_mm": 1e-7, "phase_shift_rad": phase}.get(name, 1)
    if degrees:
        array["ctf/df_angle_rad"] = np.rad2deg(array["ctf/df_angle_rad"])
    with open(tmp_path / "p.cs", "wb") as file:
        np.save(file, rfn.repack_fields(array))
    return read_metadata(tmp_path / "p.cs")


def as_pickles(tmp_path, *, transpose=False, sign=-1.0, degrees=True, phase=1.0):
    m, rotation, shift = truth(tmp_path)
    columns = [np.full(4, 64), m.pixel, m.ctf["defocus_u"], m.ctf["defocus_v"], m.ctf["azimuth"], m.ctf["voltage"]]
    columns += [m.ctf["spherical"] / 1e7, m.ctf["amplitude"], np.rad2deg(m.ctf["phase_shift"]) * phase]
    if degrees:
        columns[4] = np.rad2deg(columns[4])
    pose = (np.swapaxes(rotation, 1, 2) if transpose else rotation, sign * shift / (64 * m.pixel[:, None]))
    (tmp_path / "pose.pkl").write_bytes(pickle.dumps(pose))
    (tmp_path / "ctf.pkl").write_bytes(pickle.dumps(np.stack(columns, axis=1)))
    stack(tmp_path / "a.mrcs", 4, 64)
    return read_metadata(tmp_path / "a.mrcs", poses=tmp_path / "pose.pkl", ctf=tmp_path / "ctf.pkl")


@pytest.mark.parametrize("form", [as_cs, as_pickles], ids=["cs", "pkl"])
def test_every_format_gives_the_same_particles(tmp_path, form):
    expected, m = truth(tmp_path)[0], form(tmp_path)
    assert m.stack.tolist() == expected.stack.tolist() and m.row.tolist() == expected.row.tolist()
    np.testing.assert_allclose(m.pixel, expected.pixel)
    for name, values in expected.ctf.items():
        np.testing.assert_allclose(m.ctf[name], values, rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(seen(m), seen(expected), atol=1e-7)
    toggles = [{"transpose": form is as_pickles}, {"sign": 1.0}, {"degrees": form is as_cs}, {"phase": -1.0}]
    for toggle in toggles:
        assert np.abs(seen(form(tmp_path, **toggle)) - seen(expected)).max() > 1, toggle


@pytest.mark.parametrize(
    "toggle",
    [
        {"rlnOriginX": "-1.5"},
        {"rlnOriginY": "2"},
        {"rlnAnglePsi": ["90", "-100", "-110", "-120"]},
        {"rlnAngleRot": COLUMNS["_rlnAnglePsi"], "rlnAnglePsi": COLUMNS["_rlnAngleRot"]},
        {"rlnAngleTilt": ["-50", "-60", "-70", "-80"]},
        {"rlnDefocusAngle": ["-30", "40", "-90", "0"]},
        {"rlnDefocusU": ["-10000", "-11000", "-12000", "-13000"]},
        {"rlnAmplitudeContrast": "-0.1"},
    ],
)
def test_every_convention_of_the_star_file_matters(tmp_path, toggle):
    expected = seen(truth(tmp_path)[0])
    other = read_metadata(old(tmp_path, rlnPhaseShift="20", **toggle))
    assert np.abs(seen(other) - expected).max() > 1


def test_pickles_over_a_table(tmp_path):
    as_pickles(tmp_path)
    path, files = star(tmp_path), {"poses": tmp_path / "pose.pkl", "ctf": tmp_path / "ctf.pkl"}
    stack(tmp_path / "a.mrcs", 4, 32)
    m = read_metadata(path, **files)
    np.testing.assert_allclose(m.pixel, 4.0)  # the images are binned since the CTF file was made
    assert m.box.tolist() == [32] * 4 and m.kind == "relion 3.1+" and m.group.tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(m.shift, [[-3, 4]] * 4)
    with pytest.raises(DataError, match="has 4 rows, but .* has 3 particles"):
        stack(tmp_path / "c.mrcs", 3, 32)
        read_metadata(tmp_path / "c.mrcs", **files)
    with pytest.raises(DataError, match="origins are fractions of the box, and the pixel size"):
        read_metadata(tmp_path / "a.mrcs", poses=files["poses"])
