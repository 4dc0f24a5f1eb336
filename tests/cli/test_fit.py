"""`hetmodels fit`: what it leaves, and that every option does what it says."""

import json
import os
import subprocess
import sys

import mrcfile
import numpy as np
import pytest
import starfile

from hetmodels.cli import main
from hetmodels.cli.machine import processors
from hetmodels.posterior import Posterior
from inference.catalogue import table

BOX, COUNT = 16, 200
SHORT = ["--set", "engine.iterations=2", "--set", "engine.batch_size=60"]
ENGINES = {
    "em": ["--set", "engine.iterations=2"],
    "map": ["--set", "engine.iterations=5"],
    "svi": ["--set", "engine.iterations=5"],
    "moments": [],
    "variability": ["--set", "engine.iterations=2"],
    "mcmc": "--set engine.warmup=4 --set engine.draws=4 --set engine.chains=1 --set engine.block=4".split(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of two states, and a finished run `base`."""
    place = tmp_path_factory.mktemp("fit")
    words = f"simulate {place}/a.star --phantom 2 -n {COUNT} --box {BOX} --pixel 12 --snr 0.5 --json"
    assert main(words.split()) == 0
    assert main(["fit", f"{place}/a.star", "-o", f"{place}/base", *SHORT, "--json"]) == 0
    return place


def fit(folder, capsys, *words, run="run", status=0):
    """Run it; the JSON answer, or the error."""
    capsys.readouterr()
    assert main(["fit", str(folder / "a.star"), "-o", str(folder / run), "--json", *map(str, words)]) == status
    out, err = capsys.readouterr()
    return json.loads(out) if status == 0 else err.splitlines()[-1]


def the_map(folder, run):
    return mrcfile.read(folder / run / "volumes" / "map.mrc")


def test_what_a_run_leaves(folder):
    run = folder / "base"
    names = {file.name for file in run.iterdir()} - {".lock"}
    assert names == {
        "config.toml", "run.log", "trace.jsonl", "checkpoint", "posterior.nc", "particles.star", "volumes",
        "metrics.json",
    }  # fmt: skip
    maps = {"map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "map_sharpened.mrc", "local_resolution.mrc",
            "fsc.star"}  # fmt: skip
    assert {file.name for file in (run / "volumes").iterdir()} == maps
    with mrcfile.open(run / "volumes" / "map.mrc") as file:
        assert file.data.shape == (BOX,) * 3 and float(file.voxel_size.x) == 12.0
    assert "half sets:" in (run / "run.log").read_text()  # what was said before the folder was there
    ours = starfile.read(run / "particles.star")["particles"]
    theirs = starfile.read(folder / "a.star")["particles"]
    assert theirs.equals(ours[theirs.columns])
    assert {"hetHeldOut", "hetLogLikelihood", "hetOutlierProbability"} <= set(ours.columns)
    assert 0 < ours["hetHeldOut"].sum() < COUNT / 4


def test_the_config_of_a_run_repeats_it(folder, capsys):
    words = ["fit", "--config", str(folder / "base" / "config.toml"), "-o", str(folder / "again"), "--json"]
    assert main(words) == 0
    assert np.array_equal(the_map(folder, "again"), the_map(folder, "base"))


def test_dry_run_forecasts_and_writes_nothing(folder, capsys):
    found = fit(folder, capsys, "--dry-run", *SHORT, run="none")
    assert not (folder / "none").exists()
    assert found["memory_bytes"]["total"] > found["memory_bytes"]["state"] > 0
    assert found["disk_bytes"] > sum(file.stat().st_size for file in (folder / "base").rglob("*") if file.is_file())
    seconds = found["seconds"]
    assert seconds["passes"] == 5 and seconds["steps"] == 15
    assert seconds["total"] == pytest.approx(15 * seconds["step"] + 5 * seconds["sweep"])
    assert main(["fit", str(folder / "a.star"), "-o", str(folder / "none"), "--dry-run", *SHORT]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("memory:", "time:", "disk:", "GB"))


def test_threads_bind_every_thread_of_the_process():
    code = """
import argparse, glob, os
from hetmodels.cli.machine import on_machine
before = os.sched_getaffinity(0)
with on_machine(argparse.Namespace(device="cpu", threads=1)):
    import jax, numpy as np
    jax.block_until_ready(jax.numpy.ones((300, 300)) @ jax.numpy.ones((300, 300)))
    texts = [open(path).read() for path in glob.glob("/proc/self/task/*/status")]
    found = [text.split("Cpus_allowed_list:")[1].split()[0] for text in texts]
    assert len(found) > 1 and all(word.isdigit() for word in found), found
assert os.sched_getaffinity(0) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_runs_side_by_side_get_processors_of_their_own():
    assert processors([2, 3, 5], 1, 0) == {2} and processors([2, 3, 5], 2, 2) == {2, 5}
    assert processors([2, 3], 9, 1) == {2, 3}


def test_device(folder, capsys):
    before = dict(os.environ)
    fit(folder, capsys, "--device", "cpu", "--dry-run", *SHORT)
    assert "--device gpu" in fit(folder, capsys, "--device", "gpu", status=2)
    assert dict(os.environ) == before


def test_memory_decides_what_is_kept_and_changes_no_value(folder, capsys):
    parts = fit(folder, capsys, "--dry-run", *SHORT)["memory_bytes"]
    assert parts["cache"] > 0
    tight = (parts["total"] - parts["cache"] / 2) / 1e9
    assert fit(folder, capsys, "--dry-run", "--memory", tight, *SHORT)["memory_bytes"]["cache"] == 0
    fit(folder, capsys, "--memory", tight, *SHORT, run="tight")
    assert np.array_equal(the_map(folder, "tight"), the_map(folder, "base"))
    small = (parts["total"] - parts["cache"] - parts["batches"] / 2) / 1e9
    text = fit(folder, capsys, "--memory", small, *SHORT, status=1, run="none")
    size = text.split("engine.batch_size=")[1].split()[0]
    fit(folder, capsys, "--memory", small, "--dry-run", *SHORT, "--set", f"engine.batch_size={size}")


def test_budget_ends_a_run_that_resume_completes(folder, capsys):
    found = fit(folder, capsys, "--budget", "1e-6", *SHORT, run="brief")
    assert found["complete"] is False
    assert len((folder / "brief" / "trace.jsonl").read_text().splitlines()) == 1
    found = fit(folder, capsys, "--resume", *SHORT, run="brief")
    assert found["complete"] is True
    assert np.array_equal(the_map(folder, "brief"), the_map(folder, "base"))


def test_resume_refuses_other_settings_and_other_data(folder, capsys):
    assert "seed changed: 0, now 3" in fit(folder, capsys, "--resume", *SHORT, "--seed", 3, run="base", status=2)
    assert "engine.iterations changed" in fit(folder, capsys, "--resume", *SHORT[2:], run="base", status=2)
    table = starfile.read(folder / "a.star")
    starfile.write({**table, "particles": table["particles"].iloc[1:]}, folder / "fewer.star")
    words = ["fit", str(folder / "fewer.star"), "-o", str(folder / "base"), "--resume", *SHORT]
    assert main(words) == 2
    assert "the images or the table changed" in capsys.readouterr().err


def test_start_given_and_reference(folder, capsys):
    words = ["--set", "engine.iterations=1", "--no-halves"]
    cold = fit(folder, capsys, *words)
    for more in (
        ["--start", folder / "base"],
        ["--reference", folder / "base" / "volumes" / "map.mrc", "--ini-high", 40],
    ):
        fit(folder, capsys, *words, *more, "--overwrite")
        first = json.loads((folder / "run" / "trace.jsonl").read_text().splitlines()[0])
        assert first["objective"] > cold["objective"] + 1
    base = Posterior.load(folder / "base" / "posterior.nc").shared
    for engine in ("moments", "em"):
        fit(folder, capsys, "--engine", engine, "--no-halves", "--given", folder / "base", "--overwrite")
        run = Posterior.load(folder / "run" / "posterior.nc").shared
        np.testing.assert_array_equal(run["map_tau2"], base["map_tau2"])
        np.testing.assert_allclose(run["noise"], base["noise"].mean(2, keepdims=True), rtol=1e-6)
    assert "Homogeneous" in fit(folder, capsys, "--family", "classes", "--start", folder / "base", run="x", status=2)


@pytest.mark.slow
def test_two_references_are_two_classes(folder, capsys):
    truth = [folder / "a.truth" / f"state_00{k}.mrc" for k in (1, 2)]
    words = ["--family", "classes", "--set", "family.classes=2", "--reference", truth[0], "--reference", truth[1]]
    found = fit(folder, capsys, *words, *SHORT, "--halves", run="two")
    states = starfile.read(folder / "a.truth" / "truth.star")
    states = (states if not isinstance(states, dict) else states["particles"])["hetTrueState"].to_numpy()
    classes = starfile.read(folder / "two" / "particles.star")["particles"]
    assert (classes["hetClass"].to_numpy() == states).mean() > 0.8
    assert classes["rlnClassNumber"].equals(classes["hetClass"])
    assert (
        len(found["class_shares"]) == len(found["class_resolution_0143"]) == 2
        and (folder / "two" / "volumes" / "class_002.mrc").exists()
    )
    assert "maps of shape" in fit(folder, capsys, *words, "--set", "family.classes=3", run="x", status=2)


def test_several_starts_are_compared_and_the_best_is_kept(folder, capsys):
    words = ["--family", "classes", "--set", "engine.anneal=1", "--set", "engine.iterations=4", "--starts", 3]
    found = fit(folder, capsys, *words, run="starts")
    objectives, best = found["starts_objective"], found["starts_best"]
    assert found["objective"] == pytest.approx(max(objectives)) and objectives[best - 1] == max(objectives)
    assert -0.1 < found["starts_ari"] <= 1 and len(set(objectives)) == 3
    rows = [json.loads(line) for line in (folder / "starts" / "trace.jsonl").read_text().splitlines()]
    assert [row["start"] for row in rows] == sorted(row["start"] for row in rows) and rows[-1]["start"] == 3
    second = folder / "starts" / "checkpoint" / "start_3" / "posterior.nc"
    kept = Posterior.load(folder / "starts" / "posterior.nc").shared
    second.unlink()  # as if killed in the last start
    assert fit(folder, capsys, *words, "--resume", run="starts")["starts_objective"] == objectives
    again = Posterior.load(folder / "starts" / "posterior.nc").shared
    assert all(np.array_equal(kept[name], again[name]) for name in kept)
    assert "--starts" in fit(folder, capsys, "--starts", 2, run="x", status=2)


def test_a_start_that_was_cut_is_gone_on_with(folder, capsys):
    words = ["--family", "classes", "--set", "engine.anneal=1", "--set", "engine.iterations=3", "--starts", 2]
    whole = fit(folder, capsys, *words, run="uncut")
    cut = fit(folder, capsys, *words, "--budget", 1e-3, run="cut")
    assert not cut["complete"] and "starts_best" not in cut
    while not cut["complete"]:
        cut = fit(folder, capsys, *words, "--budget", 1e-3, "--resume", run="cut")
    assert cut["starts_objective"] == whole["starts_objective"]
    assert "engine.chains" in fit(folder, capsys, *words[:2], "--engine", "mcmc", "--starts", 2, run="x", status=2)


def test_symmetry_is_kept_by_the_map_and_refused_where_it_would_not_be(folder, capsys):
    fit(folder, capsys, *SHORT, "--no-halves", "--symmetry", "C2", run="c2")
    values = the_map(folder, "c2")[:, 1:, 1:]  # on the centre: half a turn about z reverses x and y
    plain = the_map(folder, "base")[:, 1:, 1:]
    apart = [np.linalg.norm(v - v[:, ::-1, ::-1]) / np.linalg.norm(v) for v in (values, plain)]
    assert apart[0] < 0.3 * apart[1]
    assert "C1 … C60" in fit(folder, capsys, "--symmetry", "X9", run="x", status=2)
    assert "choose em" in fit(folder, capsys, "--symmetry", "C2", "--engine", "map", run="x", status=2)


def test_box_and_holdout(folder, capsys):
    found = fit(folder, capsys, "--box", 12, "--holdout", 0.3, "--no-halves", *SHORT, "--overwrite")
    assert (found["box"], found["pixel"]) == (12, 16.0)
    assert the_map(folder, "run").shape == (12, 12, 12)
    assert not (folder / "run" / "volumes" / "half1.mrc").exists()
    particles = starfile.read(folder / "run" / "particles.star")["particles"]
    assert 0.2 < particles["hetHeldOut"].mean() < 0.4


def test_contrast_and_outliers(folder, capsys):
    """Images of nothing, as bright as particles, are found among them."""
    tables, images = starfile.read(folder / "a.star"), mrcfile.read(folder / "a.mrcs")
    junk = np.arange(0, COUNT, 20)
    images[junk] = np.random.default_rng(0).normal(size=(len(junk), BOX, BOX)) * images.std()
    mrcfile.write(folder / "junk.mrcs", images)
    names = tables["particles"]["rlnImageName"].str.replace("a.mrcs", "junk.mrcs")
    starfile.write({**tables, "particles": tables["particles"].assign(rlnImageName=names)}, folder / "junk.star")
    words = ["--contrast", "0.3", "--outliers", "--no-halves", "--set", "engine.iterations=6", "--json"]
    assert main(["fit", str(folder / "junk.star"), "-o", str(folder / "junk"), *words]) == 0
    said = Posterior.load(folder / "junk" / "posterior.nc").provenance
    assert "0.3" in said["contrast"] and said["outliers"] != "None"
    found = starfile.read(folder / "junk" / "particles.star")["particles"]["hetOutlierProbability"].to_numpy()
    clean = np.setdiff1d(np.arange(COUNT), junk)
    assert found[junk].min() > np.quantile(found[clean], 0.95) and found[clean].mean() < 0.05


def test_window(folder, capsys):
    plain = fit(folder, capsys, *SHORT, "--no-halves", "--overwrite")
    found = fit(folder, capsys, *SHORT, "--no-halves", "--window", 150, "--overwrite")
    assert Posterior.load(folder / "run" / "posterior.nc").provenance["window"] == 150
    assert found["log_likelihood_held_out"] != plain["log_likelihood_held_out"]


def test_mask(folder, capsys):
    mask = folder / "base" / "volumes" / "mask.mrc"
    fit(folder, capsys, "--mask", mask, *SHORT, "--overwrite")
    assert np.array_equal(mrcfile.read(folder / "run" / "volumes" / "mask.mrc"), mrcfile.read(mask))
    assert "--mask" in fit(folder, capsys, "--mask", mask, "--no-halves", run="x", status=2)


FAST = [("classes", "em"), ("subspace", "em"), ("neural_field", "svi")]
PAIRS = [
    pytest.param(
        family, engine, marks=[pytest.mark.slow] * (not (lacks or family == "homogeneous" or (family, engine) in FAST))
    )
    for family, row in table().items()
    for engine, lacks in row.items()
]
FAMILIES = {
    "subspace": ["--set", "family.dims=1"],
    "neural_field": "--set family.dims=1 --set family.hidden=16 --set family.layers=1".split(),
    "normal_modes": ["--set", "family.dims=1"],
    "multibody": "--set family.axis=0,0,1 --set family.nodes=3".split(),
}
# for what mcmc cannot draw
GIVEN = dict.fromkeys(("homogeneous", "classes", "subspace", "multibody"), "em") | {"neural_field": "svi"}


@pytest.fixture(scope="module")
def helix(folder):
    """C-alpha atoms of a helix of 40 residues."""
    path, angle = folder / "helix.pdb", np.deg2rad(100.0) * np.arange(40)
    centres = np.stack([2.3 * np.cos(angle), 2.3 * np.sin(angle), 1.5 * np.arange(40)], axis=1)
    rows = [
        f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           C"
        for i, (x, y, z) in enumerate(centres, 1)
    ]
    path.write_text("\n".join([*rows, "END"]) + "\n")
    return path


@pytest.mark.parametrize(("family", "engine"), PAIRS)
def test_every_engine_of_the_table(folder, helix, capsys, family, engine):
    lacks = table()[family][engine]
    own = [*FAMILIES.get(family, []), *(["--set", f"family.structure={helix}"] * (family == "normal_modes"))]
    own += ["--set", f"family.bodies={folder / 'base' / 'volumes' / 'mask.mrc'}"] * (family == "multibody")
    words = ["--family", family, *own, "--engine", engine, *ENGINES[engine], "--overwrite"]
    if engine == "mcmc" and lacks is None and family in GIVEN:
        first = GIVEN[family]
        fit(folder, capsys, "--family", family, *own, "--engine", first, *ENGINES[first], "--no-halves", "--overwrite",
            run="first")  # fmt: skip
        words += ["--given", folder / "first"]
    if lacks is not None:
        assert lacks in fit(folder, capsys, *words, run="x", status=2)
        return
    found = fit(folder, capsys, *words)
    assert found["particles"] == COUNT and np.isfinite(found["log_likelihood_held_out"])
    assert the_map(folder, "run").std() > 0
    assert len(starfile.read(folder / "run" / "particles.star")["particles"]) == COUNT
    assert os.listdir(folder / "run" / "volumes")
