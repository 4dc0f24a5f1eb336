"""Particles: what a batch holds obeys the image model, whatever was done to the images and however they are read."""

import dataclasses
import os
import pathlib
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from particle_sets import COUNT, SIZE, SPACING, arrays, metadata, molecule, noise, optics, rotations, shifts

from hetmodels.data.fields import Overrides
from hetmodels.data.memory import predict_memory
from hetmodels.data.packed import Loading, soft_window
from hetmodels.data.particles import Particles
from hetmodels.data.prepare import prepare
from hetmodels.errors import DataError, UsageError
from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.grids import Disc, Grid, phase_ramp

DATA = os.environ.get("HETMODELS_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="HETMODELS_DATA is not set: no reference files")


def slices(particles: Particles, stretch: np.ndarray, spacing: float) -> np.ndarray:
    """Slices of the molecule at stretched points, as an image of the given spacing has them."""
    points = particles.disc.grid(spacing).points

    def one(rotation: jax.Array, stretched: jax.Array) -> jax.Array:
        return molecule().project(rotation, Grid(stretched, particles.size, spacing))

    where = jnp.einsum("mi,nij->nmj", points, jnp.asarray(stretch, jnp.float32))
    return np.asarray(jax.vmap(one)(jnp.asarray(particles.rotation, jnp.float32), where))


def model(particles: Particles, batch) -> np.ndarray:
    """ctf * ramp * slice, as the likelihood computes it."""
    ramp = phase_ramp(particles.disc.grid(particles.spacing).points, batch.shift)
    return np.asarray(batch.ctf * ramp * slices(particles, np.asarray(batch.stretch), particles.spacing))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_coefficients_are_the_orthonormal_transform():
    for size in (16, 17):
        images = noise(6, size)
        found = arrays(images).coefficients(np.arange(6))
        assert found.dtype == np.complex64
        np.testing.assert_allclose(found, Disc(size).forward(images), atol=1e-6)


def test_a_fourier_crop_keeps_coefficients_with_their_gain():
    fine = np.asarray(molecule().density(32, 2.0)).sum(0)
    coarse = np.asarray(molecule().density(16, 4.0)).sum(0)
    images = np.stack([fine, 2 * fine])
    particles = Particles.from_arrays(images, rotations(2), np.zeros((2, 2)), Ctf.ideal(2), 2.0, box=16)
    assert (particles.size, particles.spacing, particles.gain) == (16, 4.0, 4.0)
    found = particles.coefficients(np.arange(2))
    assert relative_error(found[0], particles.gain * np.asarray(Disc(16).forward(coarse))) < 1e-5
    root = np.sqrt(particles.reference)[0, particles.disc.shell]
    np.testing.assert_allclose(np.asarray(particles.batch(np.arange(2)).ctf) * root, 4.0, rtol=1e-5)


def test_an_odd_box_can_be_cropped_to_an_even_one():
    images = noise(2, 17)
    found = arrays(images, box=16).coefficients(np.arange(2))
    full, kept = Disc(17), Disc(16)
    place = {tuple(k): i for i, k in enumerate(full.index.tolist())}
    order = [place[tuple(k)] for k in kept.index.tolist()]
    np.testing.assert_allclose(found, np.asarray(full.forward(images))[:, order], atol=1e-6)


def measured(particles: Particles, how: str) -> tuple[np.ndarray, Ctf, dict]:
    """Coefficients of noise-free images after some treatment, with the CTF and what the table says of it."""
    tilt = {"beam_tilt": np.tile([4e-4, -2e-4], (COUNT, 1))} if how == "aberrated" else {}
    ctf = optics(COUNT, **tilt)
    points = particles.disc.grid(SPACING).points
    transfer = np.asarray(ctf.transfer(points))
    identity = np.tile(np.eye(2), (COUNT, 1, 1))
    clean = slices(particles, identity, SPACING) * np.asarray(phase_ramp(points, jnp.asarray(shifts())))
    said = {"aberrated": {}, "flipped": {"phase_flipped": True}, "premultiplied": {"premultiplied": True}}
    factor = {
        "plain": transfer,
        "inverted": -transfer,
        "flipped": np.abs(transfer),
        "premultiplied": transfer**2,
        "aberrated": transfer * np.exp(1j * np.asarray(ctf.aberration(points))),
    }
    return factor[how] * clean, ctf, said.get(how, {"contrast_sign": -1} if how == "inverted" else {})


@pytest.mark.parametrize("how", ["plain", "inverted", "flipped", "premultiplied", "aberrated"])
def test_batches_obey_the_image_model(tmp_path, how):
    coefficients, ctf, said = measured(arrays(), how)
    images = np.asarray(Disc(SIZE).inverse(jnp.asarray(coefficients, jnp.complex64)))
    particles = Particles.from_metadata(metadata(tmp_path, images, ctf=vars(ctf), **said))
    batch = particles.batch(np.arange(COUNT))
    assert relative_error(np.asarray(batch.images), model(particles, batch)) < 2e-4
    np.testing.assert_allclose(batch.rotation, particles.rotation, atol=1e-6)


def test_two_pixel_sizes_share_one_density(tmp_path):
    own = np.where(np.arange(COUNT) % 3 == 0, 3.3, SPACING)
    group = (own == 3.3).astype(np.int32)
    plain = arrays()
    grey = own[:, None] / SPACING  # line integrals in units of the first pixel size
    identity = np.tile(np.eye(2), (COUNT, 1, 1))
    transfer, coefficients = np.empty((COUNT, plain.disc.pixels)), np.empty((COUNT, plain.disc.pixels), complex)
    for pixel in (SPACING, 3.3):
        points = plain.disc.grid(pixel).points
        rows = own == pixel
        transfer[rows] = np.asarray(optics(COUNT).transfer(points))[rows]
        ramp = np.asarray(phase_ramp(points, jnp.asarray(shifts())))
        coefficients[rows] = (slices(plain, identity, pixel) * ramp * grey)[rows]
    images = np.asarray(Disc(SIZE).inverse(jnp.asarray(transfer * coefficients, jnp.complex64)))
    particles = Particles.from_metadata(metadata(tmp_path, images, pixel=own, group=group))
    batch = particles.batch(np.arange(COUNT))
    assert relative_error(np.asarray(batch.images), model(particles, batch)) < 2e-4
    assert particles.spacing == SPACING and "3, 3.3" in particles.notes[0]
    np.testing.assert_allclose(particles.relative, SPACING / own)


def test_whitened_noise_has_unit_variance_in_every_group():
    group = (np.arange(60) % 2).astype(np.int32)
    images = noise(60) * np.where(group, 1, 5)[:, None, None] + 3
    images[1::2] += np.roll(images[1::2], 1, axis=2)
    particles = arrays(images, group=group)
    white = np.asarray(particles.batch(np.arange(60)).images)
    for g in (0, 1):
        variance = np.abs(white[group == g] - white[group == g].mean(0)) ** 2
        spectrum = particles.disc.shell_mean(jnp.asarray(variance.sum(0) / 29))
        np.testing.assert_allclose(spectrum[1:], 1, rtol=1e-5)
    assert particles.reference.shape == (2, particles.disc.shells) and np.all(particles.reference > 0)


def test_premultiplied_noise_is_restored_before_the_reference_spectrum(tmp_path):
    transfer = np.asarray(optics(COUNT).transfer(Disc(SIZE).grid(SPACING).points))
    raw = np.asarray(Disc(SIZE).forward(noise()))
    images = np.asarray(Disc(SIZE).inverse(jnp.asarray(raw * transfer, jnp.complex64)))
    plain = arrays().reference
    found = Particles.from_metadata(metadata(tmp_path, images, premultiplied=True)).reference
    np.testing.assert_allclose(found, plain, rtol=1e-2)


def test_window_is_soft_recorded_and_applied():
    particles = arrays(window=24.0)
    assert particles.window == 24.0 and arrays(window=0.5).window == 24.0
    window = soft_window(SIZE, 8.0)
    assert window[8, 8] == 1 and window[8, 12] == 1 and window[0, 0] == 0 and 0 < window[8, 14] < 1
    expected = Disc(SIZE).forward(noise() * window)
    np.testing.assert_allclose(particles.coefficients(np.arange(COUNT)), expected, atol=1e-6)
    np.testing.assert_array_equal(particles.images(np.arange(COUNT)), noise())


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_resident_and_streamed_batches_are_the_same_bits(tmp_path):
    particles = Particles.from_metadata(metadata(tmp_path, noise(70, 18)))
    streamed = particles.with_loading(Loading(cache=0))
    assert particles.resident and not streamed.resident
    order = np.random.default_rng(0).permutation(70)
    for _ in range(2):
        pairs = zip(particles.batches(order, 32), streamed.batches(order, 32, prefetch=0), strict=True)
        assert all(same(kept, read) for kept, read in pairs)


def test_batches_cover_the_order_and_pad_the_last_one():
    particles = arrays()
    order = np.random.default_rng(0).permutation(COUNT)[:20]
    before = prepare._cache_size()
    batches = list(particles.batches(order, 8))
    assert prepare._cache_size() - before <= 1
    assert [float(b.weight.sum()) for b in batches] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate([b.index for b in batches])[:20], order)
    np.testing.assert_array_equal(batches[2].index[4:], [order[-1]] * 4)
    assert same(batches[0], particles.batch(order[:8]))
    assert list(particles.batches(order[:0], 8)) == []


def test_leaving_a_pass_early_stops_its_thread():
    before = threading.active_count()
    batches = arrays().batches(np.arange(COUNT), 2)
    next(batches)
    batches.close()
    time.sleep(0.05)
    assert threading.active_count() == before


def test_a_bad_image_stops_the_pass_with_its_name():
    images = noise()
    images[17] = 0
    with pytest.raises(DataError, match="000018@array"):
        list(arrays(images).batches(np.arange(COUNT), 8))


def test_subsets_keep_images_splits_and_reference():
    particles = arrays(noise(60), micrograph=np.repeat(np.arange(30), 2))
    part = particles.subset(particles.half == 1).subset(np.arange(5)[::-1])
    rows = np.flatnonzero(particles.half == 1)[4::-1]
    np.testing.assert_array_equal(part.rows, rows)
    np.testing.assert_array_equal(part.reference, particles.reference)
    np.testing.assert_array_equal(part.held_out, particles.held_out[rows])
    whole, batch = particles.batch(rows), part.batch(np.arange(5))
    np.testing.assert_array_equal(batch.images, whole.images)
    np.testing.assert_array_equal(batch.index, np.arange(5))
    np.testing.assert_allclose(part.ctf.defocus_u, particles.ctf.defocus_u[rows])
    assert part.data_hash != particles.data_hash
    with pytest.raises(UsageError, match="no particles"):
        particles.subset(np.zeros(60, bool))


def test_another_holdout_keeps_the_rest():
    particles = arrays(noise(60))
    more = particles.with_holdout(0.3)
    assert np.all(more.held_out[particles.held_out]) and more.held_out.sum() == 18
    np.testing.assert_array_equal(more.half, particles.half)
    assert more.data_hash == particles.data_hash


def test_the_splits_depend_on_the_images_alone(tmp_path):
    images = noise(60)
    first = Particles.from_metadata(metadata(tmp_path, images))
    other = metadata(tmp_path, images, pixel=np.full(60, 2.0), rotation=rotations(60)[::-1])
    again = Particles.from_metadata(other, box=8)
    np.testing.assert_array_equal(first.half, again.half)
    np.testing.assert_array_equal(first.held_out, again.held_out)


def test_data_hash_follows_the_data_and_not_their_place(tmp_path):
    images = noise()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    hashes = [Particles.from_metadata(metadata(tmp_path / name, images)).data_hash for name in ("a", "b")]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 64
    view = metadata(tmp_path, images)
    turned = rotations(COUNT)
    turned[3] = np.eye(3)
    touched = images.copy()
    touched[0, 0, 0] += 1
    others = [
        Particles.from_metadata(view, box=12),
        Particles.from_metadata(view, window=0.8),
        Particles.from_metadata(dataclasses.replace(view, **{"without_ctf": True})),
        Particles.from_metadata(dataclasses.replace(view, **{"contrast_sign": -1})),
        Particles.from_metadata(dataclasses.replace(view, **{"rotation": turned})),
        Particles.from_metadata(dataclasses.replace(view, **{"pixel": np.full(COUNT, 2.0)})),
        Particles.from_metadata(metadata(tmp_path / "b", touched)),
    ]
    assert len({hashes[0], *(other.data_hash for other in others)}) == len(others) + 1


def test_predicted_memory_counts_the_large_arrays():
    particles = arrays()
    parts = predict_memory(particles, 8)
    assert parts["cache"] == COUNT * particles.disc.pixels * 8
    assert predict_memory(particles.with_loading(Loading(cache=0)), 8)["cache"] == 0
    assert parts["table"] >= COUNT * (9 + 2 + 15) * 8 and parts["total"] == sum(parts.values()) - parts["total"]


@needs_data
def test_relion_particles_open_and_give_batches():
    folder = pathlib.Path(DATA, "stacks/relion31")
    pair = [Particles.open(folder / name) for name in ("relion31.star", "relion31.v2.star")]
    assert (len(pair[0]), pair[0].size, pair[0].spacing) == (5, 256, 2.806)
    first, second = (particles.batch(np.arange(5)) for particles in pair)
    assert first.images.shape == (5, 25308) and same(first, second)
    assert pair[0].data_hash == pair[1].data_hash


@needs_data
def test_tilt_images_open_with_another_pixel_size():
    path = pathlib.Path(DATA, "stacks/tilt_ay19102021/sta_testing_bin8.star")
    particles = Particles.open(path, overrides=Overrides(pixel=15.68))
    particles.require_poses()
    assert (len(particles), particles.size, particles.spacing) == (219, 64, 15.68)
    batches = list(particles.batches(np.arange(219), 64))
    assert len(batches) == 4 and all(bool(np.isfinite(batch.images).all()) for batch in batches)


@needs_data
def test_a_truncated_stack_is_refused():
    path = pathlib.Path(DATA, "stacks/truncated/M_particles_sub10.star")
    with pytest.raises(DataError, match="truncated"):
        Particles.open(path, datadir=path.parent / "00256_Ribosomes_1.70A.mrcs")


@needs_data
@pytest.mark.parametrize("size", [64, 65])
def test_relion_projections_open_without_ctf(size):
    path = pathlib.Path(DATA, f"stacks/relion_project_70S/rln_proj_{size}_shifted.star")
    particles = Particles.open(path, overrides=Overrides(no_ctf=True))
    batch = particles.batch(np.arange(4))
    assert particles.size == size and batch.images.shape == (4, particles.disc.pixels)
    root = np.sqrt(particles.reference)[0, particles.disc.shell]
    np.testing.assert_allclose(np.asarray(batch.ctf) * root, 1, rtol=1e-5)
