import pickle

import jax
import numpy as np
import pytest
from star_tables import old, shared, stack, star

from hetmodels.data.checks import problems
from hetmodels.data.fields import euler_angles, euler_matrix
from hetmodels.data.metadata import Overrides, read_metadata
from hetmodels.errors import DataError
from hetmodels.imaging import rotations
from hetmodels.imaging.ctf import Ctf


def test_relion_with_optics_groups(tmp_path):
    m = read_metadata(star(tmp_path))
    assert m.kind == "relion 3.1+" and m.stack.tolist() == ["a.mrcs", "a.mrcs", "sub/b.mrcs", "sub/b.mrcs"]
    assert m.row.tolist() == [0, 1, 2, 3] and m.group.tolist() == [0, 1, 0, 0] and m.group_names == ("fast", "slow")
    assert m.pixel.tolist() == [1.5, 2, 1.5, 1.5] and m.box.tolist() == [64] * 4
    assert m.shift.tolist() == [[-3, -1], [3, -2], [-0.5, -3], [0, 4]]
    assert m.ctf["voltage"].tolist() == [300, 200, 300, 300]
    np.testing.assert_allclose(m.ctf["spherical"], [2.7e7, 2e7, 2.7e7, 2.7e7])
    np.testing.assert_allclose(m.ctf["azimuth"], np.deg2rad([30, -40, 90, 0]))
    assert m.micrograph.tolist() == ["m1", "m1", "m2", "m2"] and m.contrast_sign is None
    assert (m.pose_reason, m.ctf_reason) == ("", "")
    Ctf(**m.ctf)  # the names are those of Ctf


def test_angles_are_those_of_the_imaging_code(tmp_path):
    m = read_metadata(star(tmp_path))
    with jax.enable_x64(True):
        angles = np.deg2rad([[10, 20, 30, 40], [50, 60, 70, 80], [-90, 100, 110, 120]])
        np.testing.assert_allclose(m.rotation, rotations.from_euler(*angles), atol=1e-14)
    turns = np.random.default_rng(0).uniform(-180, 180, (200, 3)) * [1, 0.5, 1] + [0, 90, 0]
    turns[:4, 1] = [0, 180, 1e-12, 90]
    matrices = euler_matrix(*turns.T)
    np.testing.assert_allclose(euler_matrix(*euler_angles(matrices).T), matrices, atol=1e-9)


def test_optional_columns(tmp_path):
    m = read_metadata(
        star(
            tmp_path,
            labels="_rlnBeamTiltX\n_rlnBeamTiltY\n_rlnOddZernike\n_rlnEvenZernike\n_rlnMagMat00\n_rlnMagMat01\n"
            "_rlnMagMat10\n_rlnMagMat11\n_rlnCtfDataAreCtfPremultiplied\n_rlnMtfFileName\n",
            first=" 0.5 -0.25 [1,2,3] [] 1.01 0.002 0.003 0.99 1 mtf.star",
            second=" 0 0 [4] [] 1 0 0 1 1 mtf.star",
            rlnPhaseShift="90",
            rlnCtfBfactor=["0", "10", "20", "30"],
            rlnCtfScalefactor="0.5",
            rlnRandomSubset=["1", "2", "1", "2"],
            rlnClassNumber="3",
            rlnSphericalAberration=["2.6", "2.7", "2.8", "2.9"],
            rlnCtfDataArePhaseFlipped="1",
            rlnNormCorrection="0.8",
        )
    )
    ctf = m.ctf
    np.testing.assert_allclose(ctf["beam_tilt"][:2], [[5e-4, -2.5e-4], [0, 0]])
    assert ctf["odd"].tolist() == [[1, 2, 3], [4, 0, 0], [1, 2, 3], [1, 2, 3]] and ctf["even"].shape == (4, 0)
    assert ctf["stretch"][0].tolist() == [[1.01, 0.003], [0.002, 0.99]]
    np.testing.assert_allclose(ctf["phase_shift"], np.pi / 2)
    assert ctf["bfactor"].tolist() == [0, 10, 20, 30] and ctf["scale"].tolist() == [0.5] * 4
    np.testing.assert_allclose(ctf["spherical"], [2.6e7, 2.7e7, 2.8e7, 2.9e7])
    assert m.subset.tolist() == [1, 2, 1, 2] and m.class_number.tolist() == [3] * 4
    assert m.premultiplied and m.phase_flipped
    assert any("_rlnMtfFileName" in note and "no phase error" in note for note in m.notes)
    assert any("_rlnNormCorrection" in note for note in m.notes)


def test_relion_without_optics_groups(tmp_path):
    m = read_metadata(old(tmp_path, rlnVoltage=["300", "200", "300", "300"]))
    assert m.kind == "relion 3.0 or older" and m.group.tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(m.pixel, 2.0)
    np.testing.assert_allclose(m.shift, [[-3, 4]] * 4)
    assert any("--pixel" in note for note in m.notes)
    wider = read_metadata(old(tmp_path), overrides=Overrides(pixel=4.0))
    np.testing.assert_allclose(wider.shift, [[-6, 8]] * 4)
    assert not wider.notes
    refined = read_metadata(old(tmp_path, rlnSphericalAberration=["2.6", "2.7", "2.8", "2.9"]))
    assert refined.group.tolist() == [0] * 4 and any("Cs differs from row to row" in n for n in refined.notes)
    np.testing.assert_allclose(refined.ctf["spherical"], [2.6e7, 2.7e7, 2.8e7, 2.9e7])


def test_missing_columns_are_reasons_and_overrides_fill_them(tmp_path):
    path = old(tmp_path, drop=("_rlnVoltage", "_rlnAmplitudeContrast", "_rlnMagnification", "_rlnAnglePsi"))
    m = read_metadata(path)
    assert m.ctf is None and m.rotation is None and m.pixel is None and m.shift is None
    assert m.pose_reason == "the table lacks _rlnAnglePsi"
    assert "_rlnVoltage (--voltage gives it), _rlnAmplitudeContrast (--amplitude-contrast gives it)" in m.ctf_reason
    full = read_metadata(path, overrides=Overrides(voltage=300, amplitude_contrast=0.1, pixel=2))
    assert full.ctf["voltage"].tolist() == [300] * 4 and full.pixel.tolist() == [2] * 4
    assert read_metadata(path, overrides=Overrides(no_ctf=True)).without_ctf
    no_pixel = read_metadata(old(tmp_path, drop=("_rlnMagnification",)))
    assert no_pixel.rotation is None and "--pixel" in no_pixel.pose_reason
    centred = read_metadata(old(tmp_path, drop=("_rlnOriginX", "_rlnOriginY")))
    assert not centred.shift.any() and any("centred" in note for note in centred.notes)


def test_invert_changes_the_sign(tmp_path):
    assert read_metadata(star(tmp_path), overrides=Overrides(invert=True)).contrast_sign == -1


def test_tilt_images_of_a_particle_stay_together(tmp_path):
    tilts = {"rlnGroupName": ["p1", "p1", "p2", "p2"], "rlnMicrographName": ["t1", "t2", "t1", "t2"]}
    m = read_metadata(old(tmp_path, rlnCtfScalefactor=["1", "0.9", "1", "0.9"], **tilts))
    assert m.micrograph.tolist() == ["p1", "p1", "p2", "p2"] and any("tilt series" in note for note in m.notes)
    assert read_metadata(old(tmp_path, **tilts)).micrograph.tolist() == ["t1", "t2", "t1", "t2"]
    unnamed = read_metadata(old(tmp_path, drop=("_rlnMicrographName",)))
    assert unnamed.micrograph.tolist() == unnamed.stack.tolist()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rlnAngleTilt": ["1", "nan", "2", "inf"]}, r"angles is NaN or infinite in 2 of 4 rows \(row 1, 3"),
        ({"rlnDefocusV": ["1", "2", "nan", "3"]}, r"CTF parameter defocus_v is NaN .* \(row 2"),
        ({"rlnOriginXAngst": "nan"}, "origins is NaN"),
        ({"rlnDefocusU": ["1", "2", "x", "3"]}, "_rlnDefocusU must hold numbers, row 2"),
        ({"rlnOpticsGroup": ["5", "2", "1", "5"]}, "row 2 belongs to optics group 1, which the optics table does not"),
        ({"rlnImageName": "one@a.mrcs"}, "must be NUMBER@STACK"),
        (
            {"rlnCtfDataArePhaseFlipped": ["1", "0", "1", "1"]},
            "must be the same for all particles, it is set for 3 of 4",
        ),
        ({"drop": ("_rlnOpticsGroup",)}, "2 optics groups, but no _rlnOpticsGroup"),
        ({"labels": "_rlnOddZernike\n", "first": " 1,2", "second": " [1]"}, "list of numbers like"),
        ({"labels": "_rlnImageDimensionality\n", "first": " 3", "second": " 3"}, "subtomograms"),
        ({"rlnTomoVisibleFrames": "[1,1]"}, "RELION 5 tomography"),
    ],
)
def test_bad_tables_are_refused_in_words(tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        read_metadata(star(tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"\x00\x01\x02" * 50, "a binary file"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b'{"a": [1]}', "a JSON file"),
        (b"hello world\n", "text file without STAR blocks"),
        (b"# XMIPP_STAR_1 *\ndata_noname\nloop_\n _image\n a.spi\n", "Xmipp"),
        (b"ATOM      1  N   ALA A   1\n", "PDB"),
        (b"data_1ABC\n_entry.id 1ABC\n", "mmCIF"),
        (b"data_\nloop_\n_rlnMicrographName\nm.mrc\n", "a table of micrographs"),
        (b"data_\nloop_\n_rlnCoordinateX\n1\n", "coordinates"),
        (b"data_model_general\n_rlnPixelSize 1\n", "RELION model file"),
        (b"data_x\n_a 1\n", "without _rlnImageName"),
        (b"data_particles\nloop_\n_rlnImageName\n", "no particles"),
        (b"data_a\n_rlnImageName 1@a\ndata_b\n_rlnImageName 1@b\n", "several blocks list images"),
        (pickle.dumps(np.zeros(3)), "a Python pickle"),
    ],
)
def test_other_files_are_named(tmp_path, content, words):
    path = tmp_path / "file.star"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_metadata(path)


def test_passthrough_is_for_cryosparc(tmp_path):
    with pytest.raises(DataError, match="only a cryoSPARC .cs file"):
        read_metadata(star(tmp_path), passthrough=tmp_path / "x.cs")
    with pytest.raises(DataError, match="no such file"):
        read_metadata(tmp_path / "none.star")


def test_maps_are_no_stacks(tmp_path):
    stack(tmp_path / "a.mrc", 8, 8)
    with pytest.raises(DataError, match="a map of 8 x 8 x 8 voxels"):
        read_metadata(tmp_path / "a.mrc")
    stack(tmp_path / "a.mrcs", 8, 8)
    m = read_metadata(tmp_path / "a.mrcs")
    assert len(m) == 8 and m.ctf is None and m.rotation is None and "image stack" in m.pose_reason


def test_half_sets_that_are_none(tmp_path):
    m = read_metadata(star(tmp_path, rlnRandomSubset=["0", "1", "2", "1"]))
    assert m.subset is None and any("half sets are made anew" in note for note in m.notes)


def test_shared_files_are_understood_or_refused_in_words():
    folder = shared()
    expected = {
        "relion31.star": (5, "relion 3.1", 1, True, True),
        "relion31.v2.star": (5, "relion 3.1", 1, True, True),
        "relion31.6opticsgroups.star": (139, "relion 3.1+", 6, True, True),
        "relion5.star": (17, "relion 5", 1, True, True),
        "FinalRefinement-OriginalParticles-PfCRT.star": (5, "relion 3.0", 1, True, False),
        "sample_particles_relion31.star": (17, "relion 3.1+", 2, True, True),
        "sample_incomplete_ctf_params.star": (1, "relion 3.0 or older", 1, True, False),
        "ac4d_26S_u123_b1_c1.star": (1900, "relion 3.0 or older", 1, False, False),
        "relion1x_it002_data.star": (9, "relion 3.0 or older", 1, True, True),
        "sta_testing_bin8.star": (219, "relion 3.0 or older", 1, True, True),
        "M_particles_sub10.star": (10, "relion 3.0 or older", 1, True, True),
        "bgal_mic0_ctf.star": (19, "relion 3.1+", 1, False, True),
    }
    seen_names = set()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            m = read_metadata(path)
        except DataError as error:
            assert path.name not in expected and path.name in str(error) and str(error).count("\n") == 0
            continue
        problems(m)
        if path.name in expected:
            seen_names.add(path.name)
            found = (len(m), m.kind, len(m.group_names), m.rotation is not None, m.ctf is not None)
            assert found == expected[path.name], path
    assert seen_names == set(expected)


def test_shared_block_order_does_not_matter():
    one, two = (read_metadata(shared(f"stacks/relion31/relion31{v}.star")) for v in ("", ".v2"))
    assert np.array_equal(one.rotation, two.rotation) and np.array_equal(one.shift, two.shift)
    for name, values in one.ctf.items():
        assert np.array_equal(values, two.ctf[name])


def test_shared_tilt_series_agrees_with_its_pickles():
    folder = shared("stacks/tilt_ay19102021")
    table = read_metadata(folder / "sta_testing_bin8.star")
    files = {"poses": folder / "sta_pose.pkl", "ctf": folder / "sta_ctf.pkl"}
    m = read_metadata(folder / "sta_testing_bin8.star", **files)
    np.testing.assert_allclose(m.rotation, table.rotation, atol=1e-7)
    np.testing.assert_allclose(m.pixel, 8 * 1.82, rtol=1e-6)
    for name in ("defocus_u", "defocus_v", "azimuth", "voltage", "spherical", "amplitude", "bfactor", "scale"):
        np.testing.assert_allclose(m.ctf[name], table.ctf[name], rtol=1e-6, atol=1e-6, err_msg=name)
    assert len(set(m.micrograph.tolist())) == 6 and m.ctf["bfactor"].any() and len(np.unique(m.ctf["scale"])) > 5


def test_shared_refinements_per_row():
    m = read_metadata(shared("stacks/truncated/M_particles_sub10.star"))
    assert m.ctf["spherical"][0] == pytest.approx(4.0126e7) and len(np.unique(m.ctf["spherical"])) == 9
    six = read_metadata(shared("star/relion31.6opticsgroups.star"))
    assert six.ctf["odd"].shape == (139, 6) and six.ctf["even"].shape == (139, 9)
    assert sorted(set(six.pixel.tolist())) == [1.24, 1.25] and six.ctf["beam_tilt"].any()
