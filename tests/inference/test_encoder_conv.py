"""The convolutional encoder: it sees what the plain one sees, and learns from it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from plain import imaged, task

from hetmodels.imaging.grids import Disc
from hetmodels.model import observe, per_particle
from hetmodels.volumes.gaussians import Gaussians
from inference.conv_encoder import ConvEncoder, square
from inference.encoder import circle
from inference.engine import run
from inference.svi import SVI


def bright(data):
    """Two beads, the brightness of the second one the latent."""
    with data.plate():
        z = numpyro.sample("z", dist.Normal(0, 1).expand([1]).to_event(1))
        observe("images", per_particle(beads, z), data)


def beads(z):
    centres = jnp.array([[-10.0, 0, 0], [10.0, 0, 0]])
    return Gaussians(centres, 8e3 * jnp.stack([1.0, 0.8 + 0.4 * z[0]]), jnp.full(2, 8.0))


def test_the_circle_lies_in_its_square():
    edge, where = square(16, 0.42)
    place = circle(16, 0.42)
    picture = np.zeros(edge * edge)
    picture[where] = place
    full = np.zeros(16 * 16)
    full[place] = place
    rows = np.flatnonzero(full.reshape(16, 16).any(1))
    assert np.array_equal(
        picture.reshape(edge, edge), full.reshape(16, 16)[rows[0] : rows[-1] + 1, rows[0] : rows[-1] + 1]
    )


def test_its_levels_halve_the_picture_and_double_the_channels():
    shapes = ConvEncoder(channels=16).shapes(64, 8)
    assert shapes["first_0"] == ((3, 3, 1, 16), 9)
    assert shapes["second_0"] == ((3, 3, 16, 32), 144)
    assert shapes["first_1"] == ((3, 3, 32, 32), 288)
    assert ConvEncoder().levels(64) == [53, 27, 14, 7, 4]
    assert shapes["output"] == ((256, 16), 256)


@pytest.mark.slow
def test_it_learns_how_bright_a_part_is():
    """On images that it has not seen, by its own word; no second compilation."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 1)).astype(np.float32)
    first = imaged(np.full(400, 20.0), noise=0.0)
    disc = Disc(first.size)
    project = jax.jit(jax.vmap(lambda z, turn: beads(z).project(turn, disc.grid(first.spacing))))
    clean = np.asarray(disc.inverse(project(z, jnp.asarray(first.rotation, jnp.float32))))
    images = (clean + 0.15 * rng.normal(size=clean.shape)).astype(np.float32)
    particles = type(first).from_arrays(images, first.rotation, np.zeros((400, 2)), first.ctf, first.spacing)
    problem = dataclasses.replace(task(bright, particles, sd=0.15), particles=particles.with_holdout(0.2))
    engine = SVI(local=ConvEncoder(channels=4, hidden=32), batch_size=80, iterations=25, finish=None)
    result = run(engine, problem, key=jax.random.key(0))
    rows = np.flatnonzero(problem.particles.held_out)
    centre, _ = engine.proposal(problem, result.state)(problem.batch(rows))
    assert np.corrcoef(np.asarray(centre)[:, 0], z[rows, 0])[0, 1] > 0.8
    assert engine._machine(problem)[1]._cache_size() == 1


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"hidden": 0}, {"radius": 0.8}])
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        ConvEncoder(**wrong)
