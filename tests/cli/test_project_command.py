"""The command `project`: RELION's images from RELION's table, and agreement with simulated particles."""

import json
import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from hetmodels.cli import main


def correlations(first: Path, second: Path) -> np.ndarray:
    with mrcfile.open(first) as a, mrcfile.open(second) as b:
        assert a.data.shape == b.data.shape
        return np.array([np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a.data, b.data, strict=True)])


@pytest.mark.parametrize("box", [64, 65])
@pytest.mark.parametrize("kind", ["centered", "shifted"])
def test_relions_images(tmp_path: Path, capsys: pytest.CaptureFixture, box: int, kind: str) -> None:
    folder = Path(os.environ.get("HETMODELS_DATA") or "absent") / "stacks" / "relion_project_70S"
    if not folder.exists():
        pytest.skip("needs stacks/relion_project_70S in the folder that HETMODELS_DATA names")
    table, out = folder / f"rln_proj_{box}_{kind}.star", tmp_path / "o.mrcs"
    words = ["project", folder / "clean70SRibosome_vol_65p.mrc", table, "-o", out, "--no-ctf", "--json"]
    assert main([str(w) for w in words]) == 0
    data = json.loads(capsys.readouterr().out)
    assert any("no voxel size" in note for note in data["notes"]) and data["pixel"] == 1
    assert correlations(out, table.with_suffix(".mrcs")).min() >= (0.99 if box == 64 else 0.999)


@pytest.fixture(scope="module")
def particles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    star = tmp_path_factory.mktemp("simulated") / "a.star"
    words = "--phantom 1 --box 24 --pixel 6 -n 20 --shift-sd 5 --snr inf".split()
    assert main(["simulate", str(star), *words]) == 0
    return star


def test_gives_the_simulated_images_of_the_true_map(particles: Path, tmp_path: Path) -> None:
    """The simulation projects Gaussians analytically; unit, CTF, shift and pose must all agree."""
    out, truth = tmp_path / "o.mrcs", particles.with_suffix(".truth") / "state_001.mrc"
    assert main(["project", str(truth), str(particles), "-o", str(out)]) == 0
    assert correlations(out, particles.with_suffix(".mrcs")).min() > 0.999
    with mrcfile.open(out) as a, mrcfile.open(particles.with_suffix(".mrcs")) as b:
        assert np.abs(a.data - b.data).max() < 0.05 * np.abs(b.data).max()
        assert float(a.voxel_size.x) == 6


def test_without_ctf_at_the_identity_is_the_z_sum(particles: Path, tmp_path: Path) -> None:
    out, truth = tmp_path / "o.mrcs", particles.with_suffix(".truth") / "state_001.mrc"
    table = tmp_path / "still.star"
    lines = particles.read_text().splitlines()
    rows = [i for i, line in enumerate(lines) if "@" in line]
    for i in rows:
        words = lines[i].split()
        lines[i] = " ".join([words[0], *["0"] * 5, *words[6:]])
    table.write_text("\n".join(lines) + "\n")
    assert main(["project", str(truth), str(table), "-o", str(out), "--no-ctf"]) == 0
    with mrcfile.open(out) as images, mrcfile.open(truth) as density:
        expected = density.data.sum(0)
        assert np.abs(images.data - expected).max() < 0.03 * expected.max()


def test_wrong_calls(particles: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, truth = tmp_path / "o.mrcs", particles.with_suffix(".truth") / "state_001.mrc"

    def refused(status: int, words: str, *call: object) -> None:
        assert main(["project", *map(str, call)]) == status
        assert words in capsys.readouterr().err

    refused(2, "--window has no use here", truth, particles, "-o", out, "--window", 100)
    refused(1, "no such file", tmp_path / "none.mrc", particles, "-o", out)
    bare = tmp_path / "poseless.star"
    bare.write_text("data_particles\n\nloop_\n_rlnImageName #1\n_rlnImagePixelSize #2\n000001@x.mrcs 2.0\n")
    refused(1, "pose", truth, bare, "-o", out, "--no-ctf")
    out.touch()
    refused(2, "--overwrite", truth, particles, "-o", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.mrcs", "poseless.star"]
