"""Checks for authors of volumes and families: each law, with a message that says which one broke and by how much."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.families.protocol import Family, Frame, Gaussian, Gridded, Linear, Moving, framed, shown
from hetmodels.imaging.grids import Disc, phase_ramp
from hetmodels.imaging.rotations import uniform
from hetmodels.local import collapsed_ratio, component_lattice
from hetmodels.model import Observed, image_ratio, render
from hetmodels.observation import FixedNoise, Known, Observation
from hetmodels.volumes.protocol import Volume

_ROWS = 3


def check_volume(volume: Any, *, size: int = 32, spacing: float = 4.0, tolerance: float = 1e-3) -> None:
    """Check the laws of a volume.

    Args:
        volume: what to check.
        size, spacing: box edge and pixel size [Å] at which the law is checked; the density must fit inside.
        tolerance: relative error allowed between the slice and the transform of the projected density.

    Raises:
        AssertionError: naming the law and the error found.
    """
    assert isinstance(volume, Volume), f"{type(volume).__name__} has no project and density: it is not a Volume."
    disc = Disc(size)
    grid = disc.grid(spacing)
    leaves, structure = jax.tree.flatten(volume)
    volume = jax.tree.unflatten(structure, leaves)
    density = volume.density(size, spacing)
    assert density.shape == (size,) * 3, f"density({size}, …) must have shape {(size,) * 3}, got {density.shape}."
    expected = np.asarray(disc.forward(density.sum(0)))
    eye = jnp.eye(3)
    found = np.asarray(jax.jit(lambda v: v.project(eye, grid))(volume))
    assert found.shape == (disc.pixels,), (
        f"project must give one value per grid point {disc.pixels}, got {found.shape}."
    )
    error = np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-30)
    assert error < tolerance, (
        f"project(I, grid) must be the orthonormal transform of density(D, a).sum(0): relative error {error:.2g}, "
        f"allowed {tolerance:.2g}. A constant factor points to a missing voxel size, a phase to another centre."
    )
    turned = uniform(jax.random.key(0), _ROWS)
    many = jax.vmap(lambda r: volume.project(r, grid))(turned)
    one = jnp.stack([volume.project(r, grid) for r in turned])
    assert np.allclose(many, one, atol=1e-3 * np.abs(one).max()), "project must give the same under jax.vmap."
    flip = jnp.diag(jnp.array([-1.0, -1.0, 1.0]))
    mirrored = np.asarray(volume.project(flip @ turned[0], grid))
    error = np.abs(mirrored - np.conj(one[0])).max() / np.abs(one).max()
    assert error < 10 * tolerance, f"a real density seen upside down is the complex conjugate slice: error {error:.2g}."


def check_family(family: Any, *, size: int = 12, spacing: float = 8.0) -> None:
    """Check what a family promises, protocol by protocol.

    Args:
        family: what to check; a family that needs a frame gets one.
        size, spacing: box edge and pixel size [Å] of the trial images.

    Raises:
        AssertionError: naming the law and what was found.
    """
    assert isinstance(family, Family), f"{type(family).__name__} lacks shared, conformation or volume."
    disc = Disc(size)
    family = framed(family, Frame(size, spacing, (1.0,) * disc.shells))
    key_shared, key_z, key_pose, key_image = jax.random.split(jax.random.key(0), 4)
    with numpyro.handlers.block():
        shared = numpyro.handlers.seed(family.shared, key_shared)()
    assert isinstance(shared, dict), f"shared() must return a dict by name, got {type(shared).__name__}."
    z = _check_conformation(family, shared, key_z)
    observation = Observation(disc, spacing, 1, _ROWS, Known(), FixedNoise())
    batch = _trial_batch(disc, uniform(key_pose, _ROWS), key_image)
    _check_images(family, shared, z, observation, batch)
    if isinstance(family, Linear):
        _check_linear(family, shared, z, observation, batch)
    if isinstance(family, Gridded):
        _check_gridded(family, shared, observation, batch)


def _check_conformation(family: Any, shared: Any, key: Array) -> Any:
    prior = family.conformation(shared)
    laws = {} if prior is None else prior if isinstance(prior, dict) else {"z": prior}
    for name, law in laws.items():
        assert isinstance(law, dist.Distribution), (
            f"conformation: {name} must be a NumPyro distribution, got {type(law)}."
        )
        assert law.batch_shape == (), (
            f"conformation: {name} is one particle's prior; batch shape must be (), got {law.batch_shape} (to_event)."
        )
    drawn = {name: law.sample(jax.random.fold_in(key, i), (_ROWS,)) for i, (name, law) in enumerate(laws.items())}
    if prior is None:
        return None
    return drawn if isinstance(prior, dict) else drawn["z"]


def _one(z: Any, row: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[row], z)


def _trial_batch(disc: Disc, rotation: Array, key: Array) -> Batch:
    real, imaginary = jax.random.normal(key, (2, _ROWS, disc.pixels))
    zero, one = jnp.zeros(_ROWS, jnp.int32), jnp.ones(_ROWS)
    stretch = jnp.broadcast_to(jnp.eye(2), (_ROWS, 2, 2))
    ctf = jnp.cos(jnp.asarray(disc.radius, jnp.float32) / 3) * jnp.ones((_ROWS, 1))
    return Batch(real + 1j * imaginary, ctf, rotation, jnp.ones((_ROWS, 2)), stretch, zero, zero, zero, one, zero)


def _check_images(family: Any, shared: Any, z: Any, observation: Observation, batch: Batch) -> None:
    data = Observed(batch, observation, jnp.ones((1, observation.disc.shells)), None)
    seen = jax.jit(lambda z: render(family.volume(shared, z), data, {}))
    for row in range(_ROWS):
        volume = family.volume(shared, _one(z, row))
        assert isinstance(volume, Volume), f"volume(shared, z) must be a Volume, got {type(volume).__name__}."
        image = seen(_one(z, row))
        assert np.all(np.isfinite(np.asarray(image))), "volume(shared, z).project gave values that are not finite."


def _check_linear(family: Any, shared: Any, z: Any, observation: Observation, batch: Batch) -> None:
    components = family.components(shared)
    lattice, moving = component_lattice(family), isinstance(family, Moving)
    table = lattice.table(shown(family, shared))
    points = observation.disc.grid(observation.spacing).points
    grid = observation.disc.grid(observation.spacing)
    project = jax.jit(lambda z, rotation: family.volume(shared, z).project(rotation, grid))
    for row in range(_ROWS):
        design, rotation = family.design(_one(z, row)), batch.rotation[row]
        weights = design.weight if moving else design
        assert weights.shape == (len(components),), (
            f"design(z) must have shape ({len(components)},), got {weights.shape}."
        )
        turned = rotation @ design.rotation if moving else rotation[None]
        slices = lattice.gather(table, lattice.cells(turned, points))
        if moving:
            moved = jnp.einsum("ij,lj->li", rotation, design.shift)[:, :2]
            slices = jnp.einsum("llm->ml", jnp.moveaxis(slices, -1, 1)) * phase_ramp(points, moved).T
        direct = np.asarray(project(_one(z, row), rotation))
        summed = np.asarray((slices if moving else slices[0]) @ weights)
        error = np.linalg.norm(direct - summed) / max(float(np.linalg.norm(summed)), 1e-30)
        assert error < 0.05, f"volume(shared, z) must be sum_l design(z)_l components_l: slices differ by {error:.2g}."
    again = family.updated(shared, components, family.spectra(shared), jnp.ones(_nodes(family, shared)))
    error = np.abs(np.asarray(family.components(again) - components)).max()
    assert error <= 1e-5 * np.abs(np.asarray(components)).max(), (
        f"updated must keep the components given, off by {error:.2g}."
    )


def _nodes(family: Any, shared: Any) -> int:
    return len(family.grids(shared)[1]) if isinstance(family, Gridded) else 1


def _check_gridded(family: Any, shared: Any, observation: Observation, batch: Batch) -> None:
    nodes, log_weights = family.grids(shared)
    total = float(jax.scipy.special.logsumexp(log_weights))
    assert abs(total) < 1e-4, f"grids: the weights of the nodes must sum to 1, their log sum is {total:.3g}."
    if not isinstance(family, Linear) or isinstance(family, Gaussian):
        return
    noise = jnp.ones((1, observation.disc.shells))
    data = Observed(batch, observation, noise, None)
    ratio = jax.jit(lambda node: image_ratio(data, render(family.volume(shared, node), data, {})))
    each = jnp.stack([ratio(node) for node in nodes])
    expected = jax.scipy.special.logsumexp(each + log_weights[:, None], axis=0)
    found = jax.jit(lambda batch: collapsed_ratio(family, shared, batch, observation, noise, None))(batch)
    error = np.abs(np.asarray(found - expected)).max()
    limit = 0.05 * np.abs(np.asarray(expected)).max() + 0.05
    assert error < limit, f"the sum over nodes must equal the sum of images seen one by one: off by {error:.2g} nats."
