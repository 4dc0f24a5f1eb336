"""Simulated sets: conventions against independent formulas, noise, truth, refusals."""

from pathlib import Path

import jax
import jax.numpy as jnp
import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile

from hetmodels.data.maps import Map, read_map
from hetmodels.data.metadata import Metadata
from hetmodels.data.phantom import phantom
from hetmodels.data.projectors import GaussianProjector, MapProjector
from hetmodels.data.simulate import Coloured, Recording, White, simulate
from hetmodels.data.views import Microscope, Views, random_views, uniform_rotations, views_like
from hetmodels.errors import DataError, UsageError
from hetmodels.imaging.grids import Disc
from hetmodels.volumes.gaussians import Gaussians

BOX, PIXEL = 32, 3.0


def point(position: np.ndarray, width: float = 2.5) -> Gaussians:
    return Gaussians(jnp.asarray(position, jnp.float32)[None], jnp.ones(1), jnp.full(1, width))


def views(n: int, shift_sd: float = 0.0, ctf: bool = False, seed: int = 0) -> Views:
    return random_views(np.random.default_rng(seed), n, Microscope() if ctf else None, shift_sd)


def stack(path: Path) -> np.ndarray:
    with mrcfile.open(path) as file:
        return np.array(file.data)


def euler(table: pd.DataFrame) -> np.ndarray:
    """RELION's matrix, written out independently of the package."""
    angles = [np.deg2rad(table[f"rlnAngle{n}"].to_numpy(float)) for n in ("Psi", "Tilt", "Rot")]

    def about_z(a: np.ndarray) -> np.ndarray:
        c, s, o, i = np.cos(a), np.sin(a), 0 * a, 0 * a + 1
        return np.stack([c, s, o, -s, c, o, o, o, i], axis=-1).reshape(-1, 3, 3)

    c, s, o, i = np.cos(angles[1]), np.sin(angles[1]), 0 * angles[1], 0 * angles[1] + 1
    about_y = np.stack([c, o, -s, o, i, o, s, o, c], axis=-1).reshape(-1, 3, 3)
    return about_z(angles[0]) @ about_y @ about_z(angles[2])


def test_a_point_is_seen_where_angles_and_origins_say(tmp_path: Path) -> None:
    r = np.array([14.0, -9.0, 5.0])
    result = simulate(tmp_path / "a.star", [point(r, 4.0)], views(12, 4.0), Recording(BOX, PIXEL, np.inf), seed=1)
    table = starfile.read(result.star)["particles"]
    origin = table[["rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy(float)
    at = (euler(table) @ r)[:, :2] - origin
    y, x = (np.mgrid[:BOX, :BOX] - BOX // 2) * PIXEL
    for image, (cx, cy) in zip(stack(result.stack), at, strict=True):
        expected = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 4.0**2))
        assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] > 0.9999


def test_ctf_is_relions_with_white_particles(tmp_path: Path) -> None:
    """Transforms of a point's images against the formula in float64, from the numbers in the table."""
    result = simulate(
        tmp_path / "a.star", [point(np.zeros(3))], views(4, 0.0, True), Recording(BOX, PIXEL, np.inf), seed=1
    )
    tables = starfile.read(result.star)
    optics, table = tables["optics"], tables["particles"]
    if not isinstance(optics, dict):
        optics = {name: float(optics[name].iloc[0]) for name in optics.columns if name != "rlnOpticsGroupName"}
    kv, cs, q = (float(optics[n]) for n in ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"))
    volts = kv * 1e3
    lam = 12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts))
    kx, ky = np.fft.rfftfreq(BOX, PIXEL)[None, :], np.fft.fftfreq(BOX, PIXEL)[:, None]
    square = kx**2 + ky**2
    for image, row in zip(stack(result.stack), table.itertuples(), strict=True):
        angle = np.arctan2(ky, kx) - np.deg2rad(row.rlnDefocusAngle)
        mean, half = (row.rlnDefocusU + row.rlnDefocusV) / 2, (row.rlnDefocusU - row.rlnDefocusV) / 2
        defocus = mean + half * np.cos(2 * angle)
        gamma = np.pi * lam * defocus * square - np.pi / 2 * cs * 1e7 * lam**3 * square**2
        expected = np.sin(gamma + np.arcsin(q)) * np.exp(-2 * np.pi**2 * 2.5**2 * square)
        expected[BOX // 2], expected[:, -1] = 0, 0
        found = np.fft.rfft2(np.fft.ifftshift(image), norm="ortho")
        scale = (found.real * expected).sum() / (expected**2).sum()
        assert scale > 0
        np.testing.assert_allclose(found, scale * expected, atol=3e-3 * scale)


def test_signal_noise_and_their_ratio(tmp_path: Path) -> None:
    n, snr = 300, 0.25
    signal = stack(
        simulate(tmp_path / "s.star", phantom(2, BOX, PIXEL), views(n), Recording(BOX, PIXEL, np.inf), seed=3).stack
    )
    assert signal.var(axis=(1, 2), dtype=float).mean() == pytest.approx(1, rel=1e-5)
    k = np.hypot(np.fft.rfftfreq(BOX, PIXEL)[None, :], np.fft.fftfreq(BOX, PIXEL)[:, None])
    for noise in (White(), Coloured()):
        recording = Recording(BOX, PIXEL, snr, noise)
        result = simulate(
            tmp_path / f"{type(noise).__name__}.star", phantom(2, BOX, PIXEL), views(n), recording, seed=3
        )
        assert result.signal == pytest.approx(snr, rel=1e-6)
        rest = stack(result.stack) - signal * np.sqrt(snr)
        assert rest.var() == pytest.approx(1, abs=6 * np.sqrt(2 / rest.size) * 3)
        power = (np.abs(np.fft.rfft2(rest, norm="ortho")) ** 2).mean(0)
        shape = noise.power(k)
        ratio = power / shape * (shape.mean() if isinstance(noise, White) else 1)
        ratio = ratio / ratio.mean()
        shells = [ratio[(k >= a) & (k < a + 0.02)] for a in np.arange(0.01, 0.16, 0.02)]
        for shell in shells:
            assert shell.mean() == pytest.approx(1, abs=5 / np.sqrt(n * shell.size))


def test_true_maps_project_to_the_images(tmp_path: Path) -> None:
    """At the identity pose the noise-free image is the z-sum of the true map, in the same unit."""
    still = Views(np.tile(np.eye(3), (6, 1, 1)), np.zeros((6, 2)), np.array(["m.mrc"] * 6), None)
    recording = Recording(BOX, PIXEL, np.inf, contrast_sd=0.2, weights=(1.0, 2.0))
    result = simulate(tmp_path / "a.star", phantom(2, BOX, PIXEL), still, recording, seed=0)
    truth = starfile.read(result.truth / "truth.star")
    images = stack(result.stack)
    assert len(set(truth["hetTrueContrast"])) == 6
    for state, contrast, image in zip(truth["hetTrueState"], truth["hetTrueContrast"], images, strict=True):
        density = read_map(result.truth / f"state_{state:03d}.mrc")
        assert density.spacing == pytest.approx(PIXEL)
        expected = contrast * density.values.sum(0)
        np.testing.assert_allclose(image, expected, atol=2e-5 * np.abs(images).max())


def test_truth_table_and_state_numbers(tmp_path: Path) -> None:
    latents = np.array([[0.0, 5.0], [0.5, 6.0], [1.0, 7.0]])
    recording = Recording(16, 8.0, 1.0, weights=(0.0, 1.0, 3.0))
    result = simulate(tmp_path / "a.star", phantom(3, 16, 8.0), views(200, 2.0), recording, seed=0, latents=latents)
    truth, table = starfile.read(result.truth / "truth.star"), starfile.read(result.star)["particles"]
    state = truth["hetTrueState"].to_numpy()
    assert np.bincount(state - 1, minlength=3).tolist() == list(result.counts)
    assert result.counts[0] == 0 and 120 < result.counts[2] < 180
    np.testing.assert_allclose(truth[["hetTrueLatent1", "hetTrueLatent2"]], latents[state - 1])
    assert table["rlnImageName"].tolist() == truth["rlnImageName"].tolist()
    assert table["rlnImageName"].iloc[11] == "000012@a.mrcs"
    assert table["rlnMicrographName"].nunique() == 20
    assert sorted(p.name for p in result.truth.iterdir()) == [*(f"state_00{i}.mrc" for i in (1, 2, 3)), "truth.star"]
    assert mrcfile.validate(result.stack)


def test_same_seed_same_files_whatever_is_in_the_way(tmp_path: Path) -> None:
    args = (phantom(2, 16, 8.0), views(300, 1.0, True), Recording(16, 8.0, 0.5, contrast_sd=0.1))
    first = simulate(tmp_path / "a.star", *args, seed=5)
    before = [p.read_bytes() for p in (first.star, first.stack, first.truth / "truth.star")]
    with pytest.raises(UsageError, match=r"exists\. Add --overwrite"):
        simulate(tmp_path / "a.star", *args, seed=5)
    (first.truth / "stale.mrc").touch()
    simulate(tmp_path / "a.star", *args, seed=5, overwrite=True)
    assert [p.read_bytes() for p in (first.star, first.stack, first.truth / "truth.star")] == before
    assert not (first.truth / "stale.mrc").exists()
    simulate(tmp_path / "a.star", *args, seed=6, overwrite=True)
    assert first.stack.read_bytes() != before[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mrcs", "a.star", "a.truth"]


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    good = (phantom(2, 16, 8.0), views(4), Recording(16, 8.0))
    empty = Gaussians(jnp.zeros((1, 3)), jnp.zeros(1), jnp.ones(1))
    with pytest.raises(DataError, match="variance 0"):
        simulate(tmp_path / "a.star", [empty], *good[1:], seed=0)
    with pytest.raises(UsageError, match=r"named \*\.star"):
        simulate(tmp_path / "a.mrcs", *good, seed=0)
    with pytest.raises(UsageError, match="needs 2 weights"):
        simulate(tmp_path / "a.star", *good[:2], Recording(16, 8.0, weights=(1.0,)), seed=0)
    with pytest.raises(UsageError, match="latents"):
        simulate(tmp_path / "a.star", *good, seed=0, latents=np.zeros((3, 1)))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="snr > 0"):
        Recording(16, 8.0, 0.0)
    with pytest.raises(UsageError, match="defocus range"):
        Microscope(defocus=(1.0, 2.5))


@pytest.mark.parametrize("box", [24, 25])
def test_projectors_agree_with_the_exact_slice(box: int) -> None:
    volume, rotations, disc = phantom(1, box, 4.0)[0], uniform_rotations(np.random.default_rng(0), 5), Disc(box)
    exact = np.stack([volume.project(jnp.asarray(a, jnp.float32), disc.grid(4.0)) for a in rotations])
    flat = (disc.index[:, 1] % box) * (box // 2 + 1) + disc.index[:, 0]
    analytic = GaussianProjector(volume, box, 4.0)
    np.testing.assert_allclose(analytic(rotations).reshape(5, -1)[:, flat], exact, atol=3e-6 * np.abs(exact).max())
    density = analytic.density()
    mapped = MapProjector(Map(density, 4.0, np.zeros(3)), box, 4.0)
    found = mapped(rotations).reshape(5, -1)[:, flat]
    assert np.linalg.norm(found - exact) < 3e-3 * np.linalg.norm(exact)
    np.testing.assert_allclose(mapped.density(), density, atol=0.02 * density.max())


def test_a_finer_map_gives_the_images_of_its_gaussians() -> None:
    """A map of half the voxel size and a smaller box stands for the same density."""
    volume, rotations = phantom(1, 24, 4.0)[0], uniform_rotations(np.random.default_rng(1), 4)
    fine = Map(np.asarray(volume.density(44, 2.0)), 2.0, np.zeros(3))
    mapped, analytic = MapProjector(fine, 24, 4.0), GaussianProjector(volume, 24, 4.0)
    expected = analytic(rotations)
    assert np.linalg.norm(mapped(rotations) - expected) < 2e-3 * np.linalg.norm(expected)
    np.testing.assert_allclose(mapped.density(), analytic.density(), atol=2e-3 * analytic.density().max())


def test_views_are_uniform_and_grouped() -> None:
    rng = np.random.default_rng(0)
    rotations = uniform_rotations(rng, 20_000)
    np.testing.assert_allclose(rotations.mean(0), 0, atol=5 / np.sqrt(3 * 20_000))
    angle = np.arccos(np.clip((np.trace(rotations, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert np.mean(angle) == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.02)
    drawn = random_views(rng, 2000, Microscope(defocus=(8e3, 2e4)), 3.0)
    assert len(np.unique(drawn.micrograph)) == 40
    assert drawn.shift.std() == pytest.approx(3, rel=0.1)
    assert drawn.ctf is not None
    mean = (drawn.ctf["defocus_u"] + drawn.ctf["defocus_v"]) / 2
    assert ((mean >= 8e3) & (mean <= 2e4)).all() and np.histogram(mean, 8, (8e3, 2e4))[0].tolist() == [250] * 8
    assert len(np.unique(mean[drawn.micrograph == drawn.micrograph[0]])) == 1


def test_image_sets_do_not_depend_on_float64(tmp_path: Path) -> None:
    """The tables and images are the same whether or not JAX's float64 is on."""
    args = (phantom(1, 16, 8.0), views(5, 1.0, True), Recording(16, 8.0, np.inf))
    single = stack(simulate(tmp_path / "a.star", *args, seed=0).stack)
    with jax.enable_x64(True):
        double = stack(simulate(tmp_path / "b.star", *args, seed=0).stack)
    np.testing.assert_allclose(single, double, atol=2e-4)


def test_views_like_needs_a_ctf_or_the_word_for_none() -> None:
    table = Metadata(
        path=Path("x.star"),
        kind="relion 3.1+",
        stack=np.array(["x.mrcs"] * 3, object),
        row=np.arange(3),
        ctf_reason="no _rlnDefocusU",
        pose_reason="no _rlnAngleRot",
    )
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="--no-ctf"):
        views_like(table, rng)
    taken = views_like(table, rng, count=7, no_ctf=True)
    assert len(taken) == 7 and "drawn uniformly" in taken.notes[0]
