"""Small particle sets for the tests of this folder."""

import dataclasses
import pathlib

import jax.numpy as jnp
import mrcfile
import numpy as np

from hetmodels.data.fields import Metadata
from hetmodels.data.particles import Particles
from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.rotations import from_euler
from hetmodels.volumes.gaussians import Gaussians

SIZE, SPACING, COUNT = 16, 3.0, 24


def rotations(count: int) -> np.ndarray:
    angles = np.random.default_rng(1).uniform(0, 3, (3, count))
    return np.array(from_euler(*jnp.asarray(angles)))


def optics(count: int, **changes: np.ndarray) -> Ctf:
    rng = np.random.default_rng(2)
    ones = np.ones(count)
    values = {"defocus_u": rng.uniform(8e3, 2e4, count), "azimuth": rng.uniform(0, 3, count)}
    values |= {"defocus_v": values["defocus_u"] - 300, "voltage": 300 * ones, "spherical": 2.7e7 * ones}
    values |= {"amplitude": 0.1 * ones, "phase_shift": 0 * ones, "bfactor": 20 * ones, "scale": ones}
    values |= {"beam_tilt": np.zeros((count, 2)), "odd": np.zeros((count, 0)), "even": np.zeros((count, 0))}
    return Ctf(**(values | {"stretch": np.tile(np.eye(2), (count, 1, 1))} | changes))


def noise(count: int = COUNT, size: int = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size, size)).astype(np.float32)


def shifts(count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(3).normal(0, 4, (count, 2))


def arrays(images: np.ndarray | None = None, ctf: Ctf | None = None, **options) -> Particles:
    images = noise() if images is None else images
    count = len(images)
    ctf = optics(count) if ctf is None else ctf
    return Particles.from_arrays(images, rotations(count), shifts(count), ctf, SPACING, **options)


def metadata(folder: pathlib.Path, images: np.ndarray, **changes) -> Metadata:
    """A table over one stack of these images, as a reader would give it."""
    count = len(images)
    with mrcfile.new(folder / "images.mrcs", overwrite=True) as file:
        file.set_data(images)
    table = Metadata(
        path=folder / "table.star",
        kind="test",
        stack=np.array(["images.mrcs"] * count, object),
        row=np.arange(count),
        rotation=rotations(count),
        shift=shifts(count),
        pixel=np.full(count, SPACING),
        group=np.zeros(count, np.int32),
        ctf=vars(optics(count)),
    )
    return dataclasses.replace(table, **changes)


def molecule() -> Gaussians:
    rng = np.random.default_rng(4)
    parts = rng.normal(0, 6, (5, 3)), rng.uniform(1, 2, 5), rng.uniform(1.5, 2.5, 5)
    return Gaussians(*(jnp.asarray(part, jnp.float32) for part in parts))
