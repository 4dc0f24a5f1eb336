import json

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
import starfile
from scipy.spatial.transform import Rotation

from hetmodels.analysis import evaluation, fourier, fsc, map_scores, metrics
from hetmodels.analysis.particle_maps import solvent_zero
from hetmodels.analysis.rows import Rows
from hetmodels.cli import main
from hetmodels.data.maps import write_map
from hetmodels.posterior import Posterior
from hetmodels.run_directory import RunDirectory
from hetmodels.tree import pytree
from hetmodels.volumes.voxels import Voxels

SIZE, SPACING, N = 16, 3.0, 90
RNG = np.random.default_rng(0)
STATE = np.arange(N) % 3 + 1
ANGLES = np.column_stack([RNG.uniform(-180, 180, N), RNG.uniform(0, 180, N), RNG.uniform(-180, 180, N)])
LATENT = RNG.standard_normal(N)


def blobs(centres, size=SIZE, spacing=SPACING):
    g = (np.arange(size) - size // 2) * spacing
    z, y, x = np.meshgrid(g, g, g, indexing="ij")
    parts = (np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / (2 * 4.0**2)) for a, b, c in centres)
    return sum(parts).astype(np.float32)


CORE = [(0, 0, 0), (9, 0, 0), (0, 8, -4), (-7, -5, 3)]
ARMS = [(0, 0, 10), (10, 8, 0), (-9, 6, -6)]


def states(size=SIZE, spacing=SPACING):
    return {k: blobs([*CORE, arm], size, spacing) for k, arm in enumerate(ARMS, 1)}


def names(folder):
    return [f"{i + 1:06d}@{folder}/all.mrcs" for i in range(N)]


def angles(values=ANGLES):
    return {f"rlnAngle{n}": values[:, i] for i, n in enumerate(("Rot", "Tilt", "Psi"))}


@pytest.fixture
def truth(tmp_path):
    folder = tmp_path / "set.truth"
    folder.mkdir()
    columns = {"rlnImageName": names("raw"), **angles(), "hetTrueState": STATE, "hetTrueLatent1": LATENT}
    starfile.write({"particles": pd.DataFrame(columns)}, folder / "truth.star")
    for k, volume in states().items():
        write_map(folder / f"state_{k:03d}.mrc", volume, SPACING)
    return folder


def make_run(folder, columns, maps, size=SIZE, spacing=SPACING):
    run = RunDirectory(folder)
    run.volumes.mkdir(parents=True)
    run.config.write_text("")
    starfile.write({"optics": pd.DataFrame({"rlnOpticsGroup": [1]}), "particles": columns}, run.particles)
    for path, volume in maps.items():
        write_map(run.volumes / path, volume, spacing)
    return run


def scored(capsys, *words):
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_perfect_classes_in_another_order_reach_the_ceiling(tmp_path, truth, capsys):
    order = np.roll(np.arange(N), 7)  # rows in another order; images in another folder
    columns = pd.DataFrame({"rlnImageName": names("elsewhere"), **angles(), "hetClass": STATE % 3 + 1}).iloc[order]
    maps = {f"class_{k % 3 + 1:03d}.mrc": volume for k, volume in states().items()}
    run = make_run(tmp_path / "run", columns, maps)
    run.merge_metrics({"elpd": 1.5, "ari": 0.0})
    found = scored(capsys, run.path, "--truth", truth)
    assert found["ari"] == 1.0 and found["class_accuracy"] == 1.0
    assert found["fsc_auc_per_image"] == pytest.approx((SIZE // 2 - 1) / SIZE, abs=1e-4)
    assert found["fsc_auc_ceiling"] == pytest.approx(found["fsc_auc_per_image"], abs=1e-4)
    mean = sum(states().values()) / 3
    floor = np.mean([fsc.area(fsc.cryobench_curve(mean, v), SIZE) for v in states().values()])
    assert found["fsc_auc_floor"] == pytest.approx(floor, abs=1e-5) and floor < 0.43
    assert found["fsc_auc_true_mean"] == pytest.approx(floor, abs=1e-5)
    for name in ("fsc_auc_masked", "fsc_auc_per_conformation"):
        assert found[name] == pytest.approx(found[f"{name}_ceiling"], abs=1e-4) and found[f"{name}_floor"] < 0.43
    assert found["rotation_error_deg"] == pytest.approx(0.0, abs=1e-4)
    assert found["latent_spearman"] is None and found["resolution_0143"] is None
    assert set(evaluation.NAMES) <= set(found)
    stored = json.loads(run.metrics.read_text())
    assert stored["elpd"] == 1.5 and stored["ari"] == 1.0 and "resolution_0143" not in stored
    assert main(["evaluate", str(run.path), "--truth", str(truth)]) == 0
    text = capsys.readouterr().out
    assert "floor" in text and "ceiling" in text and "note: resolution_0143: the run has no half maps." in text


def test_homogeneous_run_in_a_smaller_box_with_halves_and_mask(tmp_path, truth, capsys):
    noise = np.random.default_rng(1).standard_normal((2, SIZE, SIZE, SIZE)).astype(np.float32)
    half = [states()[1] + 0.1 * n for n in noise]
    maps = {"map.mrc": 0.5 * (half[0] + half[1]), "half1.mrc": half[0], "half2.mrc": half[1]}
    small = {name: fourier.crop(v, 12) for name, v in maps.items()}
    run = make_run(tmp_path / "run", pd.DataFrame(angles()), small, 12, SPACING * SIZE / 12)
    found = scored(capsys, run.path, "--truth", truth)
    assert found["fsc_auc_per_image"] == found["fsc_auc_floor"] and found["ari"] is None
    assert found["fsc_auc_ceiling"] == pytest.approx(5 / 12, abs=1e-4)
    expected = fsc.fsc(small["half1.mrc"], small["half2.mrc"], 4.0).resolution(0.143).resolution
    assert found["resolution_0143"] == pytest.approx(expected, rel=1e-5)
    target = [fsc.fsc(small["map.mrc"], fourier.crop(v, 12), 4.0).resolution(0.5).resolution for v in states().values()]
    assert found["resolution_05"] == pytest.approx(np.median(target), rel=1e-4)
    write_map(tmp_path / "mask.mrc", np.ones((12,) * 3), 4.0)
    masked = scored(capsys, run.path, "--truth", truth, "--mask", tmp_path / "mask.mrc")
    assert "fsc_auc_masked" in found and "fsc_auc_masked" not in masked
    assert masked["fsc_auc_per_image"] == pytest.approx(found["fsc_auc_per_image"], abs=1e-5)
    write_map(tmp_path / "mask.mrc", np.ones((16,) * 3), 3.0)
    assert main(["evaluate", str(run.path), "--truth", str(truth), "--mask", str(tmp_path / "mask.mrc")]) == 1
    assert "box of the maps, 12 voxels, found 16" in capsys.readouterr().err


def test_latents_are_scored_in_their_own_gauge(tmp_path, truth, capsys):
    spread = np.random.default_rng(2).uniform(0.1, 0.3, N)
    shrink = 1 / (1 + spread**2)
    mean = shrink * (LATENT + spread * np.random.default_rng(3).standard_normal(N))
    latents = {"hetLatent1": 5 - 2 * mean, "hetLatentSd1": 2 * np.sqrt(1 - shrink)}
    run = make_run(tmp_path / "run", pd.DataFrame(angles() | latents), {"map.mrc": states()[1]})
    found = scored(capsys, run.path, "--truth", truth)
    assert found["latent_spearman"] == pytest.approx(metrics.latent_spearman(LATENT, mean[:, None]), abs=1e-6)
    assert found["coverage_50"] == pytest.approx(0.5, abs=0.16) and found["coverage_90"] == pytest.approx(0.9, abs=0.1)
    assert found["neighbourhood_similarity"] >= 1.0
    assert 0 < found["information_imbalance_latent_to_true"] < 0.5 > found["information_imbalance_true_to_latent"]
    assert found["fsc_auc_per_image"] == found["fsc_auc_floor"]
    assert main(["evaluate", str(run.path), "--truth", str(truth)]) == 0
    assert "the consensus map stands for every particle" in capsys.readouterr().out


def test_alignment_is_removed_on_request(tmp_path, truth, capsys):
    pytest.importorskip("hetmodels.imaging.rotations")
    turn = Rotation.from_euler("ZYZ", [40, 30, -20], degrees=True)
    matrices = Rows(tmp_path, pd.DataFrame(angles())).rotation() @ turn.as_matrix().T
    back = Rotation.from_matrix(np.swapaxes(matrices, -1, -2)).as_euler("ZYZ", degrees=True)
    turned = [turn.apply(p) for p in [*CORE, ARMS[0]]]
    run = make_run(tmp_path / "run", pd.DataFrame(angles(back)), {"map.mrc": blobs(turned)})
    plain = scored(capsys, run.path, "--truth", truth)
    aligned = scored(capsys, run.path, "--truth", truth, "--align")
    assert plain["rotation_error_deg"] == pytest.approx(0, abs=1e-3)
    best = np.mean([fsc.area(fsc.cryobench_curve(states()[1], v), SIZE) for v in states().values()])
    assert plain["fsc_auc_per_image"] < best - 0.05
    assert aligned["fsc_auc_per_image"] == pytest.approx(best, abs=0.02)


def test_rotation_is_the_relion_matrix():
    (r, t, p), degrees = np.radians(ANGLES[0]), pd.DataFrame(angles()).iloc[:1]
    cr, sr, ct, st, cp, sp = np.cos(r), np.sin(r), np.cos(t), np.sin(t), np.cos(p), np.sin(p)
    matrix = [
        [cp * ct * cr - sp * sr, cp * ct * sr + sp * cr, -cp * st],
        [-sp * ct * cr - cp * sr, -sp * ct * sr + cp * cr, sp * st],
        [st * cr, st * sr, ct],
    ]
    np.testing.assert_allclose(Rows(None, degrees).rotation()[0], matrix, atol=1e-12)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run, truth: run.map.unlink(), "map.mrc: this map of the run is missing"),
        (lambda run, truth: (truth / "truth.star").unlink(), "truth.star: there is no such file"),
        (lambda run, truth: (truth / "state_002.mrc").unlink(), "state_002.mrc: there is no such file"),
        (lambda run, truth: write_map(run.map, states()[1], 2.0), "all maps must cover the same extent"),
        (lambda run, truth: _write(truth, hetTrueState=STATE[:50]), "found 50 rows for 90 particles"),
        (lambda run, truth: _write(truth, hetTrueClass=STATE), "column _hetTrueState is needed"),
        (lambda run, truth: _write(truth, hetTrueState=["x", *STATE[1:]]), "row 0 holds 'x'"),
    ],
)
def test_what_does_not_fit_is_said_in_words(tmp_path, truth, capsys, spoil, message):
    run = make_run(tmp_path / "run", pd.DataFrame(angles()), {"map.mrc": states()[1]})
    spoil(run, truth)
    assert main(["evaluate", str(run.path), "--truth", str(truth)]) == 1
    assert message in capsys.readouterr().err
    assert not run.metrics.exists()


def _write(truth, **columns):
    starfile.write({"particles": pd.DataFrame(columns)}, truth / "truth.star", overwrite=True)


@pytree
class Steps:
    """A density that passes through the states as z goes from 0 to 2."""

    def shared(self):
        return {}

    def conformation(self, shared):
        return dist.Normal(0, 1)

    def volume(self, shared, z):
        share = jnp.clip(1 - jnp.abs(z - jnp.arange(3)), 0, 1)
        return Voxels(jnp.tensordot(share, shared["states"], 1), SPACING)


@pytest.mark.parametrize("images", [90, 30])
def test_each_particle_with_latents_has_the_map_of_its_posterior(tmp_path, truth, capsys, monkeypatch, images):
    monkeypatch.setattr(map_scores, "IMAGES", images)
    run = make_run(tmp_path / "run", pd.DataFrame(angles() | {"hetLatent1": STATE - 1.0}), {})
    shared = {"states": np.stack(list(states().values()))[None, None]}
    local = {"mean": STATE[:, None] - 1.0}
    Posterior(Steps(), shared, True, local, provenance={"box": SIZE, "spacing": SPACING}).save(run.posterior)
    found = scored(capsys, run.path, "--truth", truth)
    maps = {k: solvent_zero(v) for k, v in states().items()}
    own = np.mean([fsc.area(fsc.cryobench_curve(maps[k], v), SIZE) for k, v in states().items()])
    assert found["fsc_auc_per_image"] == pytest.approx(own, abs=1e-4)
    mean = sum(maps.values()) / 3
    floor = np.mean([fsc.area(fsc.cryobench_curve(mean, v), SIZE) for v in states().values()])
    assert found["fsc_auc_floor"] == pytest.approx(floor, abs=1e-4) and floor < own - 0.01
    assert found["fsc_auc_per_conformation"] == pytest.approx(own, abs=1e-4)
    main(["evaluate", str(run.path), "--truth", str(truth)])
    assert ("of 30 particles" in capsys.readouterr().out) == (images == 30)
