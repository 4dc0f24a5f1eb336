import json

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
import starfile

from hetmodels.analysis.particle_maps import solvent_zero
from hetmodels.cli import main
from hetmodels.cli.chimerax import movie
from hetmodels.cli.volumes import chimerax
from hetmodels.data.maps import read_map, write_map
from hetmodels.families import Classes, Homogeneous
from hetmodels.families.protocol import Frame
from hetmodels.posterior import Posterior
from hetmodels.run_directory import RunDirectory
from hetmodels.tree import pytree, static
from hetmodels.volumes.gaussians import Gaussians

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
    assert sorted(p.name for p in out.iterdir()) == ["class_001.mrc", "class_002.mrc", "movie.cxc", "volumes.cxc"]
    capsys.readouterr()
    words = ["volumes", str(run.path), "-o", str(out), "--particles", "1,3", "--overwrite", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["maps"] == ["particle_000001.mrc", "particle_000003.mrc"]
    for particle in (1, 3):
        found = read_map(out / f"particle_{particle:06d}.mrc")
        assert np.all(found.values == CLASS[particle]) and found.spacing == 2.5
        np.testing.assert_allclose(found.origin, [1, 2, 3])


def test_the_film_shows_one_map_at_a_time_there_and_back():
    script = movie(["a.mrc", "b.mrc", "c.mrc"], 0.25).splitlines()
    shown = [line.split()[1] for line in script if line.startswith("show #")]
    hidden = [line.split()[1] for line in script if line.startswith("hide #")]
    assert shown == ["#1", "#1", "#2", "#3", "#2", "#1"] and hidden[0] == "#1-3" and hidden[1:] == ["#1", *shown[1:-1]]
    assert script.index("movie record") < script.index("movie encode volumes.mp4 framerate 25") == len(script) - 1


def test_script_opens_every_map():
    script = chimerax(["a.mrc", "b.mrc"], 0.25).splitlines()
    assert "volume #1-2 level 0.25 step 1" in script  # one density for all, not one share of each
    assert [s for s in script if s.startswith("open")] == ["open a.mrc", "open b.mrc"]
    assert "mseries slider #1-2" in script and "mseries" not in chimerax(["a.mrc"], 0.25)


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
    words = ["volumes", str(run.path), "-o", str(tmp_path / "maps"), "--classes"]
    run.class_map(2).unlink()
    assert main(words) == 1
    assert "class_002.mrc: this map of the run is missing" in capsys.readouterr().err
    run.class_map(1).unlink()
    starfile.write({"particles": pd.DataFrame({"rlnImageName": list("abcd")})}, run.particles, overwrite=True)
    write_map(run.map, np.ones((8, 8, 8)), 2.5)
    assert main(words) == 2
    assert "needs a run with classes" in capsys.readouterr().err
    assert main(["volumes", str(tmp_path), "-o", str(tmp_path / "maps"), "--classes"]) == 1


def test_without_its_posterior_a_run_has_no_maps_at_latents(run, tmp_path, capsys):
    table = pd.DataFrame({"hetLatent1": [0.0, 1.0], "hetClass": [1, 2]})
    starfile.write({"particles": table}, run.particles, overwrite=True)
    for option in (["--particles", "0"], ["--at", "0.5"], ["--along", "1"]):
        assert main(["volumes", str(run.path), "-o", str(tmp_path / "maps"), *option]) == 2
        assert "posterior.nc" in capsys.readouterr().err


# ---- from the posterior


@pytree
class Slide:
    """A bead that moves along x by z1 and along y by z2 [Å]."""

    width: float = static(default=3.0)

    def shared(self):
        return {}

    def conformation(self, shared):
        return dist.Normal(0, 10).expand([2]).to_event(1)

    def volume(self, shared, z):
        return Gaussians(jnp.pad(z, (0, 1))[None], shared["weight"][None], jnp.array([self.width]))


def finished(run, family, shared, local):
    count = len(local["mean"])
    table = pd.DataFrame({"rlnImageName": [f"{i}@all.mrcs" for i in range(count)]})
    starfile.write({"particles": table}, run.particles, overwrite=True)
    shared = {name: np.asarray(value, np.float32)[None, None] for name, value in shared.items()}
    Posterior(family, shared, True, local, provenance={"box": 16, "spacing": 2.5}).save(run.posterior)
    return run


@pytest.fixture
def sliding(run):
    z = np.stack([np.linspace(-5, 5, 41), np.full(41, 3.0)], axis=1)
    return finished(run, Slide(), {"weight": 100.0}, {"mean": z, "held_out": np.zeros(41, bool)})


def centre(path):
    values = read_map(path).values.clip(0)
    line = (np.arange(16) - 8) * 2.5
    total = values.sum()
    return [values.sum((0, 1)) @ line / total, values.sum((0, 2)) @ line / total]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--at", "-4.5,0", "--at", "2.5,5"], {"at_001.mrc": [-4.5, 0], "at_002.mrc": [2.5, 5]}),
        (["--particles", "0,30"], {"particle_000000.mrc": [-5, 3], "particle_000030.mrc": [2.5, 3]}),
        (
            ["--along", "1", "-n", "3"],
            {"latent_1_00.mrc": [-4.5, 3], "latent_1_01.mrc": [0, 3], "latent_1_02.mrc": [4.5, 3]},
        ),
    ],
)
def test_maps_at_latents_show_the_density_there(sliding, tmp_path, options, expected):
    out = tmp_path / "maps"
    assert main(["volumes", str(sliding.path), "-o", str(out), *options]) == 0
    assert sorted(p.name for p in out.glob("*.mrc")) == list(expected)
    for name, place in expected.items():
        np.testing.assert_allclose(centre(out / name), place, atol=0.15)
        assert read_map(out / name).spacing == 2.5


def test_the_solvent_averages_zero():
    values = solvent_zero(np.random.default_rng(0).normal(size=(16, 16, 16)) + 3.0)
    line = np.arange(16) - 8
    radius = np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2)
    assert np.all(values[radius > 8] == 0) and values.dtype == np.float32
    np.testing.assert_allclose(solvent_zero(values + 5.0)[radius < 4] - values[radius < 4], 0, atol=0.3)


def test_classes_come_from_the_posterior(run, tmp_path):
    maps = np.arange(2)[:, None, None, None] + np.random.default_rng(0).normal(size=(2, 16, 16, 16))
    family = Classes(classes=2, frame=Frame(16, 2.5, (1.0,) * 8))
    local = {"mean": np.zeros((3, 0)), "responsibilities": np.array([[0.2, 0.8], [0.9, 0.1], [0.4, 0.6]])}
    finished(run, family, {"maps": maps, "weights": [0.5, 0.5]}, local)
    out = tmp_path / "maps"
    assert main(["volumes", str(run.path), "-o", str(out), "--classes"]) == 0
    assert main(["volumes", str(run.path), "-o", str(out), "--particles", "1,2", "--overwrite"]) == 0
    read = {p.name: read_map(p).values for p in out.glob("*.mrc")}
    np.testing.assert_array_equal(read["particle_000001.mrc"], read["class_001.mrc"])
    np.testing.assert_array_equal(read["particle_000002.mrc"], read["class_002.mrc"])
    inside = np.s_[6:10, 6:10, 6:10]
    np.testing.assert_allclose(np.diff(read["class_002.mrc"][inside] - maps[1][inside], axis=0), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--at", "1"], "z must be z (2 numbers), got 1"),
        (["--at", "1,x"], "must be finite numbers"),
        (["--along", "3"], "there are 2, got 3"),
        (["--classes"], "needs a run with classes"),
        (["--particles", "41"], "has 41, got 41"),
        (["--particles", "1", "-n", "4"], "needs --along"),
    ],
)
def test_wrong_latents(sliding, tmp_path, capsys, options, message):
    assert main(["volumes", str(sliding.path), "-o", str(tmp_path / "maps"), *options]) == 2
    assert message in capsys.readouterr().err


def test_latents_of_a_run_that_has_none(run, tmp_path, capsys):
    family = Homogeneous(frame=Frame(16, 2.5, (1.0,) * 8))
    finished(run, family, {"map": np.zeros((16, 16, 16))}, {"mean": np.zeros((3, 0))})
    assert main(["volumes", str(run.path), "-o", str(tmp_path / "maps"), "--at", "1"]) == 2
    assert "need continuous latents, which Homogeneous has not" in capsys.readouterr().err


def test_posterior_and_table_must_belong_together(sliding, tmp_path, capsys):
    starfile.write({"particles": pd.DataFrame({"rlnImageName": list("ab")})}, sliding.particles, overwrite=True)
    assert main(["volumes", str(sliding.path), "-o", str(tmp_path / "maps"), "--particles", "0"]) == 1
    assert "found 41 and 2" in capsys.readouterr().err
