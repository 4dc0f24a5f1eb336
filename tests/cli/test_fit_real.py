"""`hetmodels fit` on real files, against RELION where it is installed; HETMODELS_DATA names the folder of the files."""

import os
import shutil
import subprocess
from pathlib import Path

import jax
import mrcfile
import numpy as np
import pytest
import starfile

from hetmodels.cli import main
from hetmodels.data import Particles
from hetmodels.data.fields import Overrides
from hetmodels.families import Homogeneous
from inference import EM
from inference.fitting import fit

PIXEL = 14.56  # of the tilt images: 1.82 Å binned eight times; the table says 1.96


@pytest.fixture
def data():
    if "HETMODELS_DATA" not in os.environ:
        pytest.skip("HETMODELS_DATA does not name the folder of real files")
    return Path(os.environ["HETMODELS_DATA"]) / "stacks"


def relion(program, *words, folder):
    """Run a program of RELION; its standard output."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run([program, *map(str, words)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and "ERROR" not in done.stderr, done.stderr
    return done.stdout


def agreement(a, b, shells):
    """Correlation of two maps in the inscribed sphere, low-passed to so many Fourier shells."""
    size = len(a)
    line, k = np.arange(size) - size // 2, np.fft.fftfreq(size, 1 / size)
    ball = np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2) < size // 2 - 3
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)
    a, b = (np.fft.ifftn(np.fft.fftn(m) * (radius <= shells)).real[ball] for m in (a, b))
    return np.corrcoef(a, b)[0, 1]


def tilt_set(data, tmp_path):
    """The tilt set, and a copy of its table with the true pixel size for RELION."""
    for file in (data / "tilt_ay19102021").glob("*.mrcs"):
        shutil.copy(file, tmp_path)
    text = (data / "tilt_ay19102021" / "sta_testing_bin8.star").read_text()
    (tmp_path / "tilt.star").write_text(text)
    (tmp_path / "relion.star").write_text(text.replace(" 1.96000 ", f" {PIXEL:.4f} "))
    return tmp_path


def test_five_particles_run_and_are_warned_of(data, tmp_path, capsys):
    words = ["fit", str(data / "relion31" / "relion31.star"), "--box", "64", "-o", str(tmp_path / "run")]
    assert main([*words, "--set", "engine.iterations=2"]) == 0
    said = capsys.readouterr().err
    assert "5 particles make no map" in said and "half sets need particles in both halves" in said
    with mrcfile.open(tmp_path / "run" / "volumes" / "map.mrc") as file:
        assert file.data.shape == (64, 64, 64) and float(file.voxel_size.x) == pytest.approx(2.806 * 4)
    names = relion("relion_star_printtable", tmp_path / "run" / "particles.star", "data_particles", "rlnImageName",
                   "rlnAngleRot", folder=tmp_path)  # fmt: skip
    ours = starfile.read(data / "relion31" / "relion31.star")["particles"]
    assert [line.split()[0] for line in names.splitlines()] == list(ours["rlnImageName"])


def test_the_tilt_set_gives_the_map_that_relion_makes(data, tmp_path):
    place = tilt_set(data, tmp_path)
    words = f"fit {place}/tilt.star --pixel {PIXEL} --no-halves --holdout 0 -o {place}/run --json"
    assert main(words.split()) == 0
    relion("relion_reconstruct", "--i", "relion.star", "--o", "relion.mrc", "--ctf", folder=place)
    ours, theirs = mrcfile.read(place / "run" / "volumes" / "map.mrc"), mrcfile.read(place / "relion.mrc")
    assert agreement(ours, theirs, shells=10) > 0.9  # 93 Å; beyond, the prior has taken out what RELION shows of noise


def test_without_a_prior_it_is_relions_map_at_all_frequencies(data, tmp_path):
    place = tilt_set(data, tmp_path)
    relion("relion_reconstruct", "--i", "relion.star", "--o", "relion.mrc", "--ctf", folder=place)
    particles = Particles.open(place / "tilt.star", overrides=Overrides(pixel=PIXEL))
    engine = EM(iterations=3, learn_spectrum=False, learn_noise=False, solver_steps=30, tolerance=1e-9)
    flat = {"map_tau2": np.full(32, 1e6, np.float32)}
    found = fit(Homogeneous(), particles, engine, key=jax.random.key(0), holdout=0.0, given=flat)
    ours = np.asarray(found.volume_at().density(64, PIXEL))
    assert agreement(ours, mrcfile.read(place / "relion.mrc"), shells=31) > 0.95


def test_relion_reconstructs_from_our_table(data, tmp_path):
    place = tilt_set(data, tmp_path)
    words = f"fit {place}/relion.star --no-halves -o {place}/run --set engine.iterations=1 --json"
    assert main(words.split()) == 0
    shutil.copy(place / "run" / "particles.star", place / "ours.star")
    for name in ("relion", "ours"):
        relion("relion_reconstruct", "--i", f"{name}.star", "--o", f"{name}.mrc", "--ctf", folder=place)
    assert np.array_equal(mrcfile.read(place / "ours.mrc"), mrcfile.read(place / "relion.mrc"))
