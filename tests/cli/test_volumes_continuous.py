import json

import numpy as np
import pytest

from hetmodels.analysis.particle_maps import solvent_zero
from hetmodels.analysis.rows import Rows
from hetmodels.cli import main
from hetmodels.data.maps import read_map
from hetmodels.families.subspace import Subspace
from hetmodels.posterior import Posterior
from hetmodels.run_directory import RunDirectory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of five conformations, and a run whose latent is the conformation."""
    place = tmp_path_factory.mktemp("continuous")
    images = "--phantom 5 -n 240 --box 16 --pixel 12 --snr 1.0 --seed 1".split()
    star, run = str(place / "particles.star"), place / "run"
    assert main(["simulate", star, *images]) == 0
    words = ["fit", star, "-o", str(run), "--no-halves", "--set", "engine.iterations=2"]
    assert main(words) == 0
    source = RunDirectory(run)
    one = Posterior.load(source.posterior)
    truth = [read_map(place / "particles.truth" / f"state_{k:03d}.mrc").values for k in (1, 3, 5)]
    state = Rows.read(place / "particles.truth" / "truth.star").required("hetTrueState")
    z = ((state - 3) / 2)[:, None].astype(np.float32)
    family = Subspace(1, frame=one.family.frame)
    shared = {
        "map": truth[1], "components": (truth[2] - truth[0])[None] / 2, "map_tau2": one.value("map_tau2"),
        "components_tau2": 0.2 * one.value("map_tau2")[None], "noise": one.value("noise"),
    }  # fmt: skip
    local = one.local | {"mean": z, "covariance": np.full((len(z), 1, 1), 0.02, np.float32)}
    shared = {name: value[None, None] for name, value in shared.items()}
    Posterior(family, shared, True, local, provenance=one.provenance, extra=one.extra).save(source.posterior)
    return run


def test_maps_along_an_axis_with_their_standard_deviations(folder, tmp_path, capsys):
    out = tmp_path / "maps"
    words = ["volumes", str(folder), "-o", str(out), "--along", "1", "-n", "3", "--sd"]
    assert main(words) == 0
    posterior = Posterior.load(RunDirectory(folder).posterior)
    low, high = np.quantile(posterior.local["mean"][:, 0], [0.05, 0.95])
    for step, z in enumerate(np.linspace(low, high, 3)):
        expected = solvent_zero(posterior.value("map") + z * posterior.value("components")[0])
        np.testing.assert_allclose(read_map(out / f"latent_1_{step:02d}.mrc").values, expected, atol=1e-4)
    sd = [read_map(out / f"latent_1_{step:02d}_sd.mrc").values.mean() for step in range(3)]
    assert sd[1] > 0 and sd[0] > sd[1] < sd[2]  # the ends are known less well than the middle


def test_the_latent_of_a_particle_adds_to_the_standard_deviation(folder, tmp_path):
    out = tmp_path / "maps"
    assert main(["volumes", str(folder), "-o", str(out), "--particles", "3", "--sd"]) == 0
    posterior = Posterior.load(RunDirectory(folder).posterior)
    at = f"--at={posterior.local['mean'][3, 0]}"
    assert main(["volumes", str(folder), "-o", str(tmp_path / "at"), at, "--sd"]) == 0
    own, point = (read_map(p).values for p in (out / "particle_000003_sd.mrc", tmp_path / "at" / "at_001_sd.mrc"))
    moved = np.sqrt(0.02) * np.abs(posterior.value("components")[0])
    np.testing.assert_allclose(own, np.hypot(point, moved), rtol=1e-3, atol=1e-6)


def test_a_reconstruction_from_the_particles_around_a_point_follows_the_motion(folder, tmp_path, capsys):
    out = tmp_path / "maps"
    words = [
        "volumes",
        str(folder),
        "-o",
        str(out),
        "--at",
        "0.9",
        "--at",
        "-0.9",
        "--kernel",
        "--latents-to",
        "40",
        "--json",
    ]
    assert main(words) == 0
    reports = json.loads(capsys.readouterr().out)["kernel"]
    assert len(reports) == 2 and reports[0]["effective_particles"] < 240
    high, low = (read_map(out / f"at_{i:03d}_kernel.mrc").values.ravel() for i in (1, 2))
    controls = [read_map(out / f"at_{i:03d}_kernel_control.mrc").values.ravel() for i in (1, 2)]
    motion = solvent_zero(Posterior.load(RunDirectory(folder).posterior).value("components")[0]).ravel()
    assert np.corrcoef(high - low, motion)[0, 1] > 0.5 > abs(np.corrcoef(controls[0] - controls[1], motion)[0, 1])
    assert (out / "at_001_kernel_half1.mrc").is_file() and "at_001.mrc" in {p.name for p in out.iterdir()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--along", "1", "--kernel"], "it needs --at"),
        (["--classes", "--sd"], "--sd goes with"),
        (["--at", "0", "--latents-to", "50"], "--latents-to is about"),
        (["--at", "0,0"], "z must be z"),
    ],
)
def test_wrong_calls(folder, tmp_path, capsys, options, message):
    assert main(["volumes", str(folder), "-o", str(tmp_path / "maps"), *options]) == 2
    assert message in capsys.readouterr().err
