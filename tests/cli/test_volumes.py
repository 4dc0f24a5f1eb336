import json

import numpy as np
import pandas as pd
import pytest
import starfile

from hetmodels.cli import main
from hetmodels.cli.volumes import chimerax
from hetmodels.data.maps import read_map, write_map
from hetmodels.run_directory import RunDirectory

CLASS = [2, 1, 2, 2]


@pytest.fixture
def run(tmp_path):
    found = RunDirectory(tmp_path / "run")
    found.volumes.mkdir(parents=True)
    found.config.write_text("")
    starfile.write({"particles": pd.DataFrame({"rlnImageName": list("abcd"), "hetClass": CLASS})}, found.particles)
    for k in (1, 2):
        write_map(found.class_map(k), np.full((8, 8, 8), float(k)), 2.5, np.array([1.0, 2.0, 3.0]))
    return found


def test_classes_and_particles(run, tmp_path, capsys):
    out = tmp_path / "maps"
    assert main(["volumes", str(run.path), "-o", str(out), "--classes"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["class_001.mrc", "class_002.mrc", "volumes.cxc"]
    capsys.readouterr()
    words = ["volumes", str(run.path), "-o", str(out), "--particles", "1,3", "--overwrite", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["maps"] == ["particle_000001.mrc", "particle_000003.mrc"]
    for particle in (1, 3):
        found = read_map(out / f"particle_{particle:06d}.mrc")
        assert np.all(found.values == CLASS[particle]) and found.spacing == 2.5
        np.testing.assert_allclose(found.origin, [1, 2, 3])


def test_script_opens_every_map():
    script = chimerax(["a.mrc", "b.mrc"]).splitlines()
    assert [s for s in script if s.startswith("open")] == ["open a.mrc", "open b.mrc"]
    assert "mseries slider #1-2" in script and "mseries" not in chimerax(["a.mrc"])


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--particles", "4"], 2, "has 4, got 4"),
        (["--particles", "1,x"], 2, "must be particle numbers"),
        ([], 2, "--classes"),
        (["--classes", "--particles", "1"], 2, "not allowed with"),
    ],
)
def test_wrong_calls(run, tmp_path, capsys, options, status, message):
    assert main(["volumes", str(run.path), "-o", str(tmp_path / "maps"), *options]) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()


def test_a_run_without_classes_says_so(run, tmp_path, capsys):
    for k in (1, 2):
        run.class_map(k).unlink()
    assert main(["volumes", str(run.path), "-o", str(tmp_path / "maps"), "--classes"]) == 2
    assert "needs a run with classes" in capsys.readouterr().err
    assert main(["volumes", str(tmp_path), "-o", str(tmp_path / "maps"), "--classes"]) == 1


def test_particles_with_continuous_latents_are_refused(run, tmp_path, capsys):
    table = pd.DataFrame({"hetLatent1": [0.0, 1.0], "hetClass": [1, 2]})
    starfile.write({"particles": table}, run.particles, overwrite=True)
    assert main(["volumes", str(run.path), "-o", str(tmp_path / "maps"), "--particles", "0"]) == 2
    assert "continuous latents" in capsys.readouterr().err
