"""Laws of the pose search: it is the sum it says it is, what it drops it owns up to, and its posteriors are honest."""

import dataclasses
import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetmodels.data.batch import Batch
from hetmodels.data.fields import Overrides
from hetmodels.data.maps import read_map
from hetmodels.data.particles import Particles
from hetmodels.families.classes import Classes
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.families.protocol import Frame
from hetmodels.imaging.grids import Disc, phase_ramp
from hetmodels.imaging.poses import PosePrior, Sphere, Tangent, shift_children, shift_lattice, step_of
from hetmodels.imaging.rotations import from_rotvec, geodesic, uniform
from hetmodels.local import component_lattice, design_moments
from hetmodels.observation import Contrast, FixedNoise, Known, Observation, Refined
from hetmodels.scoring import Templates, latent_ratio
from hetmodels.search import Search, find_poses
from hetmodels.volumes.gaussians import Gaussians

PIXEL = 10.0


def observation(size, contrast=None):
    disc = Disc(size)
    return Observation(disc, PIXEL, 1, 10, Known(), FixedNoise(), contrast)


def classes(maps, weights):
    size = maps.shape[-1]
    frame = Frame(size, PIXEL, (1.0,) * (size // 2))
    family = Classes(classes=len(maps), frame=frame)
    shared = {"maps": jnp.asarray(maps), "maps_tau2": jnp.ones(size // 2), "weights": jnp.asarray(weights)}
    return family, shared


def homogeneous(values):
    size = values.shape[-1]
    frame = Frame(size, PIXEL, (1.0,) * (size // 2))
    return Homogeneous(frame=frame), {"map": jnp.asarray(values), "map_tau2": jnp.ones(size // 2)}


def batch_of(images, ctf, dtype=jnp.float32):
    rows = len(images)
    eye = lambda n: jnp.broadcast_to(jnp.eye(n, dtype=dtype), (rows, n, n))  # noqa: E731
    integers, ones = jnp.zeros(rows, jnp.int32), jnp.ones(rows, dtype)
    return Batch(jnp.asarray(images), jnp.asarray(ctf, dtype), eye(3), jnp.zeros((rows, 2), dtype), eye(2), integers,
                 integers, integers, ones, integers)  # fmt: skip


def prior_of(rows, sd=8.0, dtype=jnp.float32):
    eye = jnp.broadcast_to(jnp.eye(3, dtype=dtype), (rows, 3, 3))
    return PosePrior(eye, jnp.zeros((rows, 2), dtype), np.inf, sd)


def dense_slices(family, shared, rotations, points):
    """Slices of all components by the interpolator, one rotation after another."""
    lattice = component_lattice(family)
    table = lattice.table(family.components(shared))
    return np.stack([np.asarray(lattice.gather(table, lattice.cells(r[None], points)))[0] for r in rotations])


def brute_force(y, ctf, variance, slices, phases, log_prior, log_nodes, contrast):
    """Sum over every rotation, shift and class of the Gaussian density ratio, contrast by a fine grid; float64."""
    total = []
    for r, t, k in itertools.product(range(len(slices)), range(len(phases)), range(len(log_nodes))):
        x = ctf * phases[t] * slices[r, :, k]
        if contrast is None:
            value = -np.sum((np.abs(y - x) ** 2 - np.abs(y) ** 2) / variance)
        else:
            a = np.linspace(1 - 12 * contrast, 1 + 12 * contrast, 4001)
            linear, square = 2 * np.sum((y.conj() * x).real / variance), np.sum(np.abs(x) ** 2 / variance)
            log_p = a * linear - a**2 * square - 0.5 * ((a - 1) / contrast) ** 2
            log_p += np.log((a[1] - a[0]) / np.sqrt(2 * np.pi) / contrast)
            value = np.logaddexp.reduce(log_p)
        total.append(value + log_prior[r, t] + log_nodes[k])
    return np.array(total).reshape(len(slices), len(phases), -1)


@pytest.mark.parametrize(("contrast", "reach"), [(None, 0.0), (0.3, 0.0), (None, 2.0)])
def test_one_pass_is_the_brute_force_sum(contrast, reach):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        obs = observation(8, None if contrast is None else Contrast(contrast))
        family, shared = classes(rng.normal(size=(3, 8, 8, 8)), np.array([0.2, 0.5, 0.3]))
        m, rows = obs.disc.pixels, 3
        images = 2 * (rng.normal(size=(rows, m)) + 1j * rng.normal(size=(rows, m)))
        ctf, noise = rng.uniform(-1, 1, (rows, m)), rng.uniform(2, 4, (1, obs.disc.shells))
        how = Search(0, 0, 3, 1.5 * PIXEL, PIXEL, mass=1.0, top=2000, reach=reach)
        prior = prior_of(rows, dtype=jnp.float64)
        centre = jnp.broadcast_to(uniform(jax.random.key(1), 1).astype(jnp.float64), (rows, 3, 3))
        shift = jnp.full((rows, 2), 1.7)
        templates = Templates.of(family, shared, obs, jnp.asarray(noise))
        found = find_poses(how, templates, batch_of(images, ctf, jnp.float64), prior, centre, shift)
        grid = how.first_grid()
        rotations = grid.rotation(jnp.arange(grid.cells)[None], centre[:1])[0]
        shifts = 1.7 + shift_lattice(15.0, PIXEL)
        points = obs.disc.grid(PIXEL).points.astype(jnp.float64)
        phases = np.asarray(phase_ramp(points, jnp.asarray(shifts)))
        slices = dense_slices(family, shared, rotations, points)
        area = np.log(PIXEL**2 / (2 * np.pi * 64)) - 0.5 * (shifts**2).sum(1) / 64
        log_prior = grid.log_volume + np.tile(area, (len(rotations), 1))
        assert (len(rotations), len(shifts)) == (33 if reach else 72, 9)
    log_nodes, variance = np.log([0.2, 0.5, 0.3]), noise[0][obs.disc.shell]
    for i in range(rows):
        joint = brute_force(images[i], ctf[i], variance, slices, phases, log_prior, log_nodes, contrast)
        total = np.logaddexp.reduce(joint.ravel())
        assert found.log_evidence[i] == pytest.approx(total, rel=1e-9, abs=1e-9)
        by_pose = np.exp(np.logaddexp.reduce(joint, axis=2) - total)
        expected = np.sort(by_pose.ravel())[::-1]
        np.testing.assert_allclose(found.weight[i][: expected.size], expected, atol=1e-9)
        r, t = np.unravel_index(by_pose.argmax(), by_pose.shape)
        np.testing.assert_allclose(found.rotation[i, 0], rotations[r], atol=1e-12)
        np.testing.assert_allclose(found.shift[i, 0], shifts[t], atol=1e-12)
        assert abs(found.discarded[i]) < 1e-9


class OneMode:
    """Mean plus one Gaussian mode, as the latent integration sees a family."""

    def latent_covariance(self, shared):
        return shared["covariance"]


@pytest.mark.parametrize("contrast", [None, Contrast(0.2)])
def test_gaussian_latents_are_integrated_as_at_one_pose(contrast):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        obs = observation(8, contrast)
        covariance = np.array([[2.0, 0.3], [0.3, 0.5]])
        pairs = tuple((i, j) for i in range(3) for j in range(i, 3))
        x = rng.normal(size=(2, 5, 3, 20))
        gram = jnp.asarray(np.einsum("brlm,brkm->brlk", x, x))
        packed = jnp.stack([gram[..., i, j] for i, j in pairs], -1)
        cross = jnp.asarray(10 * rng.normal(size=(2, 4, 5, 3)))
        shared = {"covariance": jnp.asarray(covariance)}
        templates = Templates(OneMode(), shared, jnp.ones((1, 4)), jnp.zeros((1, 6)), obs, pairs)
        found = latent_ratio(templates, cross, packed)
        wide = jnp.broadcast_to(gram[:, None], (2, 4, 5, 3, 3)).reshape(-1, 3, 3)
        expected = design_moments(OneMode(), shared, cross.reshape(-1, 3), wide, contrast).log_ratio
        np.testing.assert_allclose(np.asarray(found).ravel(), np.asarray(expected), rtol=1e-9, atol=1e-9)


def lump(size):
    """Forty blobs at random in an ellipsoid with three different axes: no symmetry, not even nearly."""
    rng = np.random.default_rng(11)
    centres = rng.normal(size=(40, 3))
    centres *= rng.uniform(0, 1, (40, 1)) ** (1 / 3) / np.linalg.norm(centres, axis=1, keepdims=True)
    centres = (centres - centres.mean(0)) * np.array([0.36, 0.27, 0.2]) * size * PIXEL
    weights, widths = rng.uniform(0.5, 1.5, 40), np.full(40, max(size / 64, 1) * PIXEL)
    return Gaussians(*(jnp.asarray(x, jnp.float32) for x in (centres, weights, widths)))


def pose_set(n, size, snr, seed, sd=0.8, rotation=None, shift=None):
    """Images of the lump with known poses, projected analytically: map, images of unit noise, poses."""
    rng = np.random.default_rng(seed)
    volume, disc = lump(size), Disc(size)
    rotation = np.asarray(uniform(jax.random.key(seed), n)) if rotation is None else rotation
    shift = sd * PIXEL * rng.normal(size=(n, 2)) if shift is None else shift
    grid = disc.grid(PIXEL)
    clean = jax.jit(jax.vmap(lambda r: volume.project(r, grid)))(jnp.asarray(rotation, jnp.float32))
    clean = np.asarray(clean * phase_ramp(grid.points, jnp.asarray(shift, jnp.float32)))
    variance = np.mean(np.abs(clean) ** 2) * 2 * disc.pixels / size**2 / snr
    noise = np.sqrt(variance / 2) * (rng.normal(size=clean.shape) + 1j * rng.normal(size=clean.shape))
    images = ((clean + noise) / np.sqrt(variance)).astype(np.complex64)
    values = np.asarray(volume.density(size, PIXEL)) / np.sqrt(variance)
    return values, images, rotation, shift


def search_for(values, images, how, sd=8.0, turn=None, jitter=0.0, centre=None):
    obs = observation(values.shape[-1])
    family, shared = homogeneous(values.astype(np.float32))
    templates = Templates.of(family, shared, obs, jnp.ones((1, obs.disc.shells)))
    rows = len(images)
    rotation = jnp.broadcast_to(jnp.eye(3) if turn is None else turn, (rows, 3, 3))
    shift = jnp.full((rows, 2), jitter, jnp.float32)
    if centre is not None:
        rotation, shift = jnp.asarray(centre.rotation[:, 0]), jnp.asarray(centre.shift[:, 0])
    return find_poses(how, templates, batch_of(images, np.ones(images.shape)), prior_of(rows, sd), rotation, shift)


@pytest.mark.parametrize(
    ("order", "snr", "mass", "kept"),
    [(1, 0.05, 0.9, 576), (1, 0.05, 0.999, 64), (1, 1.0, 0.9, 64), (0, 0.3, 0.8, 72)],
)
def test_refined_grids_lose_no_more_than_they_say(order, snr, mass, kept):
    lost, said = [], []
    for seed in (2, 12):
        values, images, *_ = pose_set(40, 16, snr, seed, sd=0.5)
        how = Search(order, 1, 7, 2 * PIXEL, PIXEL, mass=mass, kept=kept, top=30000)
        turn = uniform(jax.random.key(seed), 1)[0]
        everything = dataclasses.replace(how, kept=72 * 8**order, mass=1.0, bound=1e6, top=1)
        full = search_for(values, images, everything, sd=5.0, turn=turn)
        found = search_for(values, images, how, sd=5.0, turn=turn)
        lost.append(1 - np.exp(found.log_evidence - full.log_evidence))
        said.append(found.discarded)
        np.testing.assert_allclose(found.weight.sum(1) + found.discarded, 1, atol=1e-5)
    lost, said = np.concatenate(lost), np.concatenate(said)
    assert lost.min() > -1e-4 and said.max() > 0.01
    assert lost.mean() <= said.mean()
    assert np.mean(lost <= said + 1e-3) > 0.9


def test_splitting_everything_is_the_fine_grid():
    values, images, *_ = pose_set(4, 12, 0.1, seed=3)
    every = Search(0, 1, 5, PIXEL, PIXEL, mass=1.0, kept=72, bound=1e6, top=4)
    split = search_for(values, images, every)
    fine = Search(1, 0, 5, 1.0, PIXEL / 2, mass=1.0, top=4)
    parts = [
        search_for(values, images, fine, jitter=jnp.asarray(t, jnp.float32))
        for t in np.asarray(shift_children(jnp.asarray(shift_lattice(PIXEL, PIXEL))[None], PIXEL)[0])
    ]
    total = np.logaddexp.reduce([p.log_evidence for p in parts], axis=0)
    np.testing.assert_allclose(split.log_evidence, total, atol=2e-3)


def test_copies_of_maps_serve_their_own_images():
    values, images, *_ = pose_set(6, 12, 0.1, seed=4)
    how = Search(1, 1, 5, PIXEL, PIXEL)
    obs = observation(12)
    family, shared = homogeneous(values.astype(np.float32))
    templates = Templates.of(family, shared, obs, jnp.ones((1, obs.disc.shells)))
    other = Templates.of(family, {**shared, "map": shared["map"][::-1]}, obs, templates.noise)
    both = dataclasses.replace(templates, tables=jnp.concatenate([templates.tables, other.tables]))
    batch, prior = batch_of(images, np.ones(images.shape)), prior_of(6)
    centre, zero, copy = jnp.broadcast_to(jnp.eye(3), (6, 3, 3)), jnp.zeros((6, 2)), jnp.arange(6) % 2
    found = find_poses(how, both, batch, prior, centre, zero, copy)
    for c, t in enumerate((templates, other)):
        alone = find_poses(how, t, batch, prior, centre, zero)
        np.testing.assert_allclose(found.log_evidence[c::2], alone.log_evidence[c::2], atol=2e-3)


@pytest.mark.parametrize(("order", "snr"), [(2, 1.0), (1, 10.0)])
def test_poses_are_recovered(order, snr):
    values, images, rotation, shift = pose_set(60, 24, snr, seed=5)
    how = Search(order, 4 - order, 11, 3 * PIXEL, PIXEL, top=8)
    found = search_for(values, images, how, turn=uniform(jax.random.key(0), 1)[0])
    angle = np.asarray(geodesic(found.rotation[:, 0], rotation))
    away = np.linalg.norm(found.shift[:, 0] - shift, axis=1)
    assert np.mean(angle < step_of(3)) > 0.9
    assert np.median(angle) < 0.1 and np.mean(away < PIXEL / 2) > 0.9


def test_a_finer_lattice_leads_nearer_to_the_truth():
    values, images, rotation, _ = pose_set(60, 24, 1.0, seed=5)
    how = Search(2, 2, 11, 3 * PIXEL, PIXEL, top=8)
    found = search_for(values, images, how, turn=uniform(jax.random.key(0), 1)[0])
    local = dataclasses.replace(how, order=4, levels=1, reach=3.0, shift_radius=PIXEL / 2, shift_step=PIXEL / 4)
    near = search_for(values, images, local, centre=found)
    angle, finer = (np.asarray(geodesic(f.rotation[:, 0], rotation)) for f in (found, near))
    good = angle < step_of(2)
    assert np.median(finer[good]) < np.median(angle[good])


@pytest.mark.parametrize("nominal", [0.5, 0.9])
def test_credible_sets_hold_the_truth_as_often_as_they_say(nominal):
    grid = Sphere.of(1)
    n, rng = 400, np.random.default_rng(6)
    every = np.asarray(grid.rotation(jnp.arange(grid.cells)[None], jnp.eye(3)[None])[0])
    rotation = every[rng.integers(0, grid.cells, n)]
    lattice = shift_lattice(2 * PIXEL, PIXEL)
    p = np.exp(-0.5 * (lattice**2).sum(1) / 64)
    shift = lattice[rng.choice(len(lattice), n, p=p / p.sum())]
    values, images, *_ = pose_set(n, 12, 0.02, seed=7, rotation=rotation, shift=shift)
    found = search_for(values, images, Search(1, 0, 5, 2 * PIXEL, PIXEL, mass=1.0, top=grid.cells * len(lattice)))
    same = np.abs(found.rotation - rotation[:, None]).max((2, 3)) < 1e-3
    same &= np.abs(found.shift - shift[:, None]).max(2) < 1e-3
    place = same.argmax(1)
    assert same.any(1).all()
    before = np.take_along_axis(np.cumsum(found.weight, 1) - found.weight, place[:, None], 1)[:, 0]
    own = np.take_along_axis(found.weight, place[:, None], 1)[:, 0]
    covered = np.clip((nominal - before) / own, 0, 1)  # the last pose of the set is in it with the share that fits
    assert abs(covered.mean() - nominal) < 3.5 * np.sqrt(nominal * (1 - nominal) / n)


def test_refined_poses_have_their_gaussian_prior():
    """Of a map that says nothing the posterior is the prior, cut at 3.5 standard deviations."""
    rows, pose = 3, Refined(rotation_sd=0.05, shift_sd=4.0, mass=1.0, kept=10**6, poses=10**6)
    images = np.ones((rows, Disc(12).pixels), np.complex64)
    batch = dataclasses.replace(batch_of(images, images.real), rotation=uniform(jax.random.key(0), rows),
                                shift=jnp.asarray([[1.0, 2], [3, -4], [0, 0]]))  # fmt: skip
    plan = pose.plan(batch, PIXEL, 0, 5).moved(jax.random.key(1))
    family, shared = homogeneous(np.zeros((12, 12, 12), np.float32))
    found = plan.run(Templates.of(family, shared, observation(12), jnp.ones((1, 6))), batch)
    np.testing.assert_allclose(found.log_evidence, 0, atol=0.02)
    angle = geodesic(found.rotation, batch.rotation[:, None])
    away = found.shift - np.asarray(batch.shift)[:, None]
    np.testing.assert_allclose((found.weight * angle**2).sum(1), 3 * 0.05**2, rtol=0.04)
    np.testing.assert_allclose((found.weight[..., None] * away**2).sum(1), 4.0**2, rtol=0.04)
    assert np.all(np.linalg.norm((found.weight[..., None] * away).sum(1), axis=1) < 0.1)


def test_refined_poses_weigh_their_prior_against_the_image():
    values, images, rotation, shift = pose_set(60, 24, 1.0, seed=8)
    rng = np.random.default_rng(0)
    turn = np.asarray(from_rotvec(0.1 * rng.normal(size=(60, 3))))
    pose = Refined(rotation_sd=0.1, shift_sd=5.0)
    batch = batch_of(images, np.ones(images.shape))
    given = dataclasses.replace(batch, rotation=jnp.asarray(turn @ rotation, jnp.float32),
                                shift=jnp.asarray(shift + 5 * rng.normal(size=(60, 2)), jnp.float32))  # fmt: skip
    family, shared = homogeneous(values.astype(np.float32))
    templates = Templates.of(family, shared, observation(24), jnp.ones((1, 12)))
    plan = pose.plan(given, PIXEL, 0, 11).resolved(templates, given)
    assert plan.search.levels > 0
    found = plan.run(templates, given)
    before, after = (np.asarray(geodesic(r, rotation)) for r in (given.rotation, found.rotation[:, 0]))
    assert np.median(after) < 0.5 * np.median(before) and np.mean(after < 2 * step_of(4)) > 0.9
    assert np.median(np.linalg.norm(found.shift[:, 0] - shift, axis=1)) < 2.0
    tight = Refined(rotation_sd=1e-3, shift_sd=0.05).plan(given, PIXEL, 0, 11).run(templates, given)
    assert np.max(geodesic(tight.rotation[:, 0], given.rotation)) < 0.005


def test_children_tile_their_parents():
    sphere = Sphere.of(1)
    code = sphere.children(jnp.arange(sphere.cells)[None])[0]
    assert np.array_equal(np.sort(code), np.arange(8 * sphere.cells))
    parents = sphere.rotation(jnp.arange(sphere.cells)[None], jnp.eye(3)[None])[0]
    kids = sphere.finer().rotation(code[None], jnp.eye(3)[None])[0]
    assert float(geodesic(jnp.repeat(parents, 8, 0), kids).max()) < step_of(1)
    tangent = Tangent.of(3, 2.0)
    kids = tangent.finer().vectors.reshape(tangent.cells, 8, 3)
    np.testing.assert_allclose(kids.mean(1), tangent.vectors, atol=1e-6)
    assert np.exp(sphere.log_volume) * sphere.cells == pytest.approx(1)


def cropped(values, size):
    """A map on fewer voxels of the same field of view."""
    full = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(values)))
    start = len(values) // 2 - size // 2
    part = full[(slice(start, start + size),) * 3]
    part[0], part[:, 0], part[:, :, 0] = 0, 0, 0
    return np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(part)).real).astype(np.float32)


@pytest.mark.parametrize("kind", ["centered", "shifted"])
def test_poses_of_relion_project_are_recovered(kind):
    folder = Path(os.environ.get("HETMODELS_DATA") or "absent") / "stacks" / "relion_project_70S"
    if not folder.exists():
        pytest.skip("needs stacks/relion_project_70S in the folder that HETMODELS_DATA names")
    particles = Particles.open(folder / f"rln_proj_64_{kind}.star", overrides=Overrides(no_ctf=True))
    values = cropped(read_map(folder / "clean70SRibosome_vol_65p.mrc")[0], 64)
    values *= particles.images(np.arange(4)).std() / values.sum(0).std()
    obs = Observation(particles.disc, particles.spacing, 1, 4, Known(), FixedNoise())
    frame = Frame(64, particles.spacing, (1.0,) * 32)
    family, shared = Homogeneous(frame=frame), {"map": jnp.asarray(values), "map_tau2": jnp.ones(32)}
    templates = Templates.of(family, shared, obs, jnp.full((1, obs.disc.shells), 0.3))
    centre, zero = jnp.broadcast_to(uniform(jax.random.key(3), 1), (4, 3, 3)), jnp.zeros((4, 2))
    how = Search(2, 2, 20, 17.0, 2.0)
    found = find_poses(how, templates, particles.batch(np.arange(4)), prior_of(4, 8.0), centre, zero)
    assert np.max(geodesic(found.rotation[:, 0], particles.rotation)) < step_of(4)
    assert np.abs(found.shift[:, 0] - particles.shift).max() <= 0.5
