"""Structures, trajectories, form factors, superposition and morphs."""

import os
from pathlib import Path

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetmodels.data.structures import (
    centred,
    matched,
    morph,
    read_models,
    read_structure,
    read_trajectory,
    superposed,
)
from hetmodels.errors import DataError
from hetmodels.imaging.grids import Grid
from hetmodels.volumes.gaussians import Gaussians

PDB = """\
MODEL        1
ATOM      1  N   GLY A   1       1.000   2.000   3.000  1.00 10.00           N
ATOM      2  CA AGLY A   1       2.000   2.500   3.000  0.60 20.00           C
ATOM      3  CA BGLY A   1       9.000   9.500   9.000  0.40 20.00           C
ATOM      4  HA  GLY A   1       2.000   2.000   4.000  1.00 20.00           H
ATOM      5  C   ALA A   2       5.000   0.500  -1.000  1.00 30.00           C
ATOM      6  O   ALA A   2A      5.000   0.500  -4.000  1.00 30.00           O
HETATM    7  O   HOH A   9      50.000   0.500  -4.000  1.00 30.00           O
HETATM    8 FE   HEM B   3       0.000   1.000   0.000  1.00 15.00          FE
ENDMDL
MODEL        2
ATOM      1  N   GLY A   1       1.500   2.000   3.000  1.00 10.00           N
ENDMDL
END
"""


def real(name: str) -> Path:
    folder = os.environ.get("HETMODELS_DATA")
    path = Path(folder or "absent") / name
    if not path.exists():
        pytest.skip(f"needs {name} in the folder that HETMODELS_DATA names")
    return path


@pytest.fixture
def pdb(tmp_path: Path) -> Path:
    path = tmp_path / "small.pdb"
    path.write_text(PDB)
    return path


def test_hydrogens_waters_and_second_locations_are_dropped(pdb: Path) -> None:
    structure = read_structure(pdb)
    assert structure.names.tolist() == ["N", "CA", "C", "O", "FE"]
    assert structure.elements.tolist() == ["N", "C", "C", "O", "Fe"]
    assert structure.residues.tolist() == ["1", "1", "2", "2A", "3"]
    assert structure.chains.tolist() == list("AAAAB")
    np.testing.assert_allclose(structure.positions[1], [2, 2.5, 3])
    np.testing.assert_allclose(structure.bfactors, [10, 20, 30, 30, 15])
    assert [len(m) for m in read_models(pdb)] == [5, 1]


def test_pdb_and_mmcif_agree(pdb: Path, tmp_path: Path) -> None:
    model = gemmi.read_structure(str(pdb))
    model.make_mmcif_document().write_file(str(tmp_path / "small.cif"))
    a, b = read_structure(pdb), read_structure(tmp_path / "small.cif")
    np.testing.assert_allclose(a.positions, b.positions)
    assert a.elements.tolist() == b.elements.tolist() and a.names.tolist() == b.names.tolist()


def test_gaussians_have_the_form_factor_of_the_tables(pdb: Path) -> None:
    """The transform of one atom is f(k) exp(-B k^2/4) exp(-2 pi^2 blur^2 k^2), with gemmi's f(k) as the oracle."""
    with jax.enable_x64(True):
        structure = read_structure(pdb)
        k = np.linspace(0, 0.5, 11)
        grid = Grid(jnp.asarray(np.stack([k, 0 * k], axis=1)), 1, 1.0)
        for i, kind in enumerate(structure.elements):
            atom = structure.take(np.array([i]))
            for blur, bfactor in [(0.0, 0.0), (1.5, 40.0), (0.3, None)]:
                volume = atom.gaussians(blur, bfactor)
                assert len(volume.weights) == 5
                form = np.array([gemmi.Element(kind).c4322.calculate_sf(x**2 / 4) for x in k])
                b = atom.bfactors[0] if bfactor is None else bfactor
                expected = form * np.exp(-b * k**2 / 4 - 2 * (np.pi * blur * k) ** 2)
                np.testing.assert_allclose(jnp.abs(volume.project(jnp.eye(3), grid)), expected, rtol=3e-6)


def test_one_gaussian_per_atom_only_where_it_is_good_enough(pdb: Path) -> None:
    structure = read_structure(pdb)
    k = np.linspace(0, 0.1, 6)
    grid = Grid(jnp.asarray(np.stack([k, k], axis=1) / np.sqrt(2)), 1, 1.0)
    few, many = structure.gaussians(2.0, band=0.1), structure.gaussians(2.0)
    assert len(few.weights) == 5 and len(many.weights) == 25
    assert len(structure.gaussians(2.0, band=1.0).weights) == 25
    a, b = (v.project(jnp.eye(3), grid) for v in (few, many))
    assert float(jnp.abs(a - b).max()) < 0.01 * float(many.weights.sum())


def test_beads_keep_integral_centre_and_mean_variance(pdb: Path) -> None:
    structure = read_structure(pdb)
    atoms, beads = structure.gaussians(3.0), structure.beads(3.0)
    assert len(beads.weights) == 4
    for volume in (atoms, beads):
        assert float(volume.weights.sum()) == pytest.approx(float(atoms.weights.sum()), rel=1e-6)

    def moments(v: Gaussians) -> tuple[np.ndarray, float]:
        w, x, s = (np.asarray(a, float) for a in (v.weights, v.centres, v.widths))
        mean = w @ x / w.sum()
        return mean, float(w @ (((x - mean) ** 2).sum(1) + 3 * s**2) / w.sum())

    np.testing.assert_allclose(moments(beads)[0], moments(atoms)[0], atol=1e-5)
    assert moments(beads)[1] == pytest.approx(moments(atoms)[1], rel=1e-5)


def test_one_vector_centres_all_states(pdb: Path) -> None:
    a = read_structure(pdb)
    b = a.at(a.positions + [0, 0, 6.0])
    first, second = centred([a, b])
    np.testing.assert_allclose(second.positions - first.positions, b.positions - a.positions)
    np.testing.assert_allclose(first.centre_of_mass() + second.centre_of_mass(), 0, atol=1e-12)


def test_superposition_undoes_a_motion_and_never_mirrors(pdb: Path) -> None:
    a = read_structure(pdb)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turn *= np.linalg.det(turn)
    np.testing.assert_allclose(superposed(a.at(a.positions @ turn.T + 7), a).positions, a.positions, atol=1e-10)
    mirrored = superposed(a.at(a.positions * [1, 1, -1]), a)
    assert np.abs(mirrored.positions - a.positions).max() > 0.1


def test_morph_matches_atoms_and_goes_straight(pdb: Path) -> None:
    a = read_structure(pdb)
    b = a.at(a.positions + 1.0).take(np.array([4, 3, 1, 0]))
    path = morph(a, b, 5)
    assert [s.names.tolist() for s in path] == [["N", "CA", "O", "FE"]] * 5
    np.testing.assert_allclose(path[0].positions, a.take(np.array([0, 1, 3, 4])).positions)
    np.testing.assert_allclose(path[1].positions - path[0].positions, 0.25)
    with pytest.raises(DataError, match="at least 2 frames"):
        morph(a, b, 1)
    with pytest.raises(DataError, match="share 2 atoms"):
        matched(a, b.take(np.array([0, 1])))


def test_refusals_name_the_file(tmp_path: Path, pdb: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_structure(tmp_path / "none.pdb")
    (tmp_path / "bad.cif").write_text("this is no cif")
    with pytest.raises(DataError, match=r"bad\.cif"):
        read_structure(tmp_path / "bad.cif")
    (tmp_path / "empty.pdb").write_text("REMARK nothing\nEND\n")
    with pytest.raises(DataError, match="no atoms"):
        read_structure(tmp_path / "empty.pdb")
    (tmp_path / "odd.pdb").write_text(PDB.splitlines()[1].replace("N\n", "")[:76] + " X\n")
    with pytest.raises(DataError, match="form factor"):
        read_structure(tmp_path / "odd.pdb").gaussians(1.0)
    np.save(tmp_path / "a.npy", np.zeros((4, 3)))
    with pytest.raises(DataError, match="frames, atoms, 3"):
        read_trajectory(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((2, 4, 3)))
    with pytest.raises(DataError, match="has 4 atoms but its topology"):
        read_trajectory(tmp_path / "b.npy", pdb)


def test_npy_trajectory_with_hydrogens_in_its_topology(tmp_path: Path, pdb: Path) -> None:
    """All atoms of the topology stand in the frames (the second location counts not); hydrogens and waters go."""
    frames = np.random.default_rng(0).normal(size=(6, 7, 3))
    np.save(tmp_path / "t.npy", frames)
    states = read_trajectory(tmp_path / "t.npy", pdb, stride=2)
    assert len(states) == 3 and states[0].names.tolist() == ["N", "CA", "C", "O", "FE"]
    np.testing.assert_allclose(states[1].positions, frames[2][[0, 1, 3, 4, 6]])


def test_real_trajectories(capfd: pytest.CaptureFixture) -> None:
    topology = real("trajectories/hivp.pdb")
    states = read_trajectory(real("trajectories/hivp.dcd"), topology)
    assert len(states) == 117 and len(states[0]) == 198
    np.testing.assert_allclose(states[0].positions, read_structure(topology).positions, atol=1e-3)
    assert capfd.readouterr().out == ""
    with pytest.raises(DataError, match="topology"):
        read_trajectory(real("trajectories/hivp.dcd"))
    with pytest.raises(DataError, match="not a readable trajectory"):
        read_trajectory(real("numbers/peng_c4322_gemmi.csv"), topology)


def test_hsp90_opens_in_equal_steps() -> None:
    states = read_trajectory(real("trajectories/hsp90_20models_CA_1207x3.npy"))
    away = [np.sqrt(((s.positions - states[0].positions) ** 2).sum(1).mean()) for s in states]
    assert len(states) == 20 and len(states[0]) == 1207
    np.testing.assert_allclose(np.diff(away), away[-1] / 19, rtol=0.05)


def test_real_pairs_match_by_residue_number() -> None:
    apo, bound = (read_structure(real(f"structures/{n}.pdb")) for n in ("1cfd_calmodulin_apo", "1cll_calmodulin_ca"))
    assert "H" not in apo.elements and "O" in bound.elements
    a, b = matched(apo, bound)
    assert a.names.tolist() == b.names.tolist() and (a.names == "CA").sum() == 144
    moved = matched(superposed(bound, apo), apo)
    assert np.sqrt(((moved[0].positions - moved[1].positions) ** 2).sum(1).mean()) < np.sqrt(
        ((a.positions - b.positions) ** 2).sum(1).mean()
    )
    cif = read_structure(real("structures/8zpm_cxcr4.cif"))
    assert sorted(np.unique(cif.chains)) == ["N", "R"] and (cif.names == "CA").sum() == 398


def test_density_lies_where_the_atoms_are() -> None:
    """A map and its model in one frame: the simulated density fits the map, its mirror image does not."""
    from hetmodels.data.maps import read_map

    target = read_map(real("maps/strudel_emd6272_chop.mrc"))
    structure = read_structure(real("maps/strudel_emd6272_chop.pdb"))
    size = target.values.shape[0]
    shifted = structure.at(structure.positions - (target.origin + size // 2 * target.spacing))
    density = np.asarray(shifted.gaussians(1.0, band=0.2).density(size, target.spacing))
    assert np.corrcoef(density.ravel(), target.values.ravel())[0, 1] > 0.45
    assert np.corrcoef(density[::-1].ravel(), target.values.ravel())[0, 1] < 0.15
    assert np.corrcoef(density.transpose(2, 1, 0).ravel(), target.values.ravel())[0, 1] < 0.15
