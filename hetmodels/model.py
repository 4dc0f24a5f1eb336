"""The generative model of a particle set in NumPyro: the only place with plates.

    shared values -> plate over particles: conformation, pose -> image

A model of one's own is a function of the observed batch:

    def model(batch):
        centre = numpyro.sample("centre", dist.Normal(0, 1).expand([3]).to_event(1))
        with batch.plate():
            z = numpyro.sample("z", dist.Normal(0, 1))
            observe("images", per_particle(lambda z: density(centre, z), z), batch)
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.families.protocol import Gaussian, Gridded, Linear, Shared, Smooth
from hetmodels.imaging.grids import Grid, phase_ramp
from hetmodels.local import collapsed_ratio
from hetmodels.observation import Observation, marginal_ratio, split_junk
from hetmodels.pose_sum import summed_ratio


@dataclasses.dataclass(frozen=True)
class PerParticle:
    """Densities that differ between the particles of a batch.

    They are built inside the loop over particles, so that what they share is never repeated in memory.

    Attributes:
        build: the density at the latents of one particle.
        latents: its arguments, arrays with a leading particle axis.
    """

    build: Callable[..., Any]
    latents: tuple[Any, ...]


def per_particle(build: Callable[..., Any], *latents: Any) -> PerParticle:
    """One density per particle, from latents with a leading particle axis."""
    return PerParticle(build, latents)


@dataclasses.dataclass(frozen=True)
class Observed:
    """What a model function receives: a batch of images with its measurement.

    Attributes:
        batch: the particles.
        observation: how densities become images.
        noise: variance relative to the reference spectrum, (groups, shells).
        junk: share of junk, or None.
    """

    batch: Batch
    observation: Observation
    noise: Array
    junk: Array | None

    @contextlib.contextmanager
    def plate(self) -> Iterator[None]:
        """The plate over particles: rescaled to all of them; padding rows do not count."""
        rows = self.batch.weight.shape[0]
        with (
            numpyro.plate("particles", self.observation.particles, subsample_size=rows),
            numpyro.handlers.mask(mask=self.batch.weight > 0),
        ):
            yield

    @property
    def variance(self) -> Array:
        """Variance of each stored pixel, (rows, pixels)."""
        return self.observation.pixel_variance(self.noise, self.batch.group)

    def posed(self) -> Batch:
        """The batch at poses drawn from their prior: sites `pose_…`, if there are any and they are not summed over."""
        batch, pose = self.batch, self.observation.pose
        if batch.poses is not None:
            return batch
        latents = pose_latents(self.observation)
        if not latents:
            return batch
        rotation, shift = jax.vmap(pose.place)(latents, batch.rotation, batch.shift)
        return dataclasses.replace(batch, rotation=rotation, shift=shift)


def observed(observation: Observation, batch: Batch) -> Observed:
    """Declare the noise and the share of junk, and hand the batch to a model."""
    noise = observation.noise.variance(observation.groups, observation.disc.shells)
    junk = None if observation.outliers is None else observation.outliers.share()
    return Observed(batch, observation, noise, junk)


def render(volume: Any, data: Observed, pose: dict[str, Array]) -> Array:
    """Model images before contrast and noise, complex (rows, pixels).

    Args:
        volume: one Volume for all particles, or a `PerParticle`.
        data: the batch.
        pose: the pose object's latents, leading axis rows.
    """
    batch, obs = data.batch, data.observation
    points = obs.disc.grid(obs.spacing).points
    lattice = obs.disc if obs.axes_kept else None
    own = isinstance(volume, PerParticle)

    def one(z: tuple[Any, ...], latents: dict[str, Array], rotation: Array, shift: Array, stretch: Array) -> Array:
        rotation, shift = obs.pose.place(latents, rotation, shift)
        seen = jnp.einsum("mi,ij->mj", points, stretch, precision=jax.lax.Precision.HIGHEST)
        density = volume.build(*z) if own else volume
        grid = Grid(seen, obs.disc.size, obs.spacing, lattice)
        return density.project(rotation, grid) * phase_ramp(points, shift)

    z = volume.latents if own else ()
    return batch.ctf * jax.vmap(one)(z, pose, batch.rotation, batch.shift, batch.stretch)


def pose_latents(observation: Observation) -> dict[str, Array]:
    """Sample sites `pose_…` inside the plate."""
    return {name: numpyro.sample(f"pose_{name}", prior) for name, prior in observation.pose.prior().items()}


def image_ratio(data: Observed, model: Array) -> Array:
    """log p(y | model) - log p(y | noise of the reference spectrum) with contrast and junk integrated, (rows,)."""
    batch, variance = data.batch, data.variance
    linear = 2 * jnp.sum((jnp.conj(batch.images) * model).real / variance, axis=-1)
    quadratic = jnp.sum((model.real**2 + model.imag**2) / variance, axis=-1)
    ratio, _, _ = marginal_ratio(linear, quadratic, data.observation.contrast)
    ratio, _ = split_junk(ratio, data.observation, batch, variance, data.junk)
    return ratio + data.observation.zero_ratio(batch.images, variance)


def observe(name: str, volume: Any, data: Observed) -> None:
    """Condition on the batch's images, inside `data.plate()`.

    The factor is log p(y | …) relative to noise of the reference spectrum alone, a constant of the data. The images
    before contrast and noise are the deterministic site `<name>_model`.

    Args:
        name: name of the site.
        volume: a Volume common to all particles, or the result of `per_particle`.
        data: what the model function received.
    """
    model = numpyro.deterministic(f"{name}_model", render(volume, data, pose_latents(data.observation)))
    numpyro.factor(name, image_ratio(data, model))


def generative(family: Any) -> Callable[[Observed], None]:
    """The NumPyro model of a family, a function of the observed batch.

    Latents that the family's structure allows to integrate exactly (`Gridded`, `Gaussian`) are integrated at every
    pose, the poses being summed where the batch brings a few of each image (`Batch.poses`); those of a `Smooth` family
    by Laplace's approximation together with the pose; all others, poses among them, are sample sites inside the plate.
    """

    def model(data: Observed) -> None:
        shared = family.shared()
        if integrable(family, shared):
            with data.plate():
                batch = data.posed()
                integral = collapsed_ratio if batch.poses is None else summed_ratio
                ratio = integral(family, shared, batch, data.observation, data.noise, data.junk)
                numpyro.factor("images", ratio + data.observation.zero_ratio(batch.images, data.variance))
            return
        if isinstance(family, Smooth):
            from hetmodels.smooth import laplace_ratio  # which needs `render`

            with data.plate():
                numpyro.factor("images", laplace_ratio(family, shared, data))
            return
        prior = family.conformation(shared)
        with data.plate():
            z = sample_conformation(prior)
            if prior is None:
                observe("images", family.volume(shared, None), data)
            else:
                observe("images", per_particle(lambda z: family.volume(shared, z), z), data)

    return model


def integrable(family: Any, shared: Shared) -> bool:
    """Whether a particle's latents integrate in closed form where its pose is known."""
    if not isinstance(family, Linear):
        return False
    return isinstance(family, (Gridded, Gaussian)) or family.conformation(shared) is None


def collapsible(family: Any, shared: Shared, observation: Observation) -> bool:
    """Whether a particle's latents integrate in closed form, its pose among them."""
    return integrable(family, shared) and not observation.pose.prior()


def sample_conformation(prior: Any) -> Any:
    """Sample a particle's latent from its prior: sites `z`, or one per name of a dict."""
    if prior is None:
        return None
    if isinstance(prior, dist.Distribution):
        return numpyro.sample("z", prior)
    return {name: numpyro.sample(name, law) for name, law in prior.items()}
