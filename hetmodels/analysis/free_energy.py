"""Free energy along a path of maps from the images themselves: cryo-BIFE in its proper hierarchical form.

Nodes x_1 … x_M of a path are given; P_im = p(y_i | x_m) says how well each explains each image. The free energy G is
that of the population, rho = softmax(-G), in units of kT. Its prior is a random walk along the path of unknown strength
(Giraldo-Barreto et al. 2021, Sci. Rep. 11, have its strength integrated under a flat prior, which puts infinite density
on the flat profile; here the strength has a log-normal law). `path_model` is a plain NumPyro function, so that

    posterior = inference.profiles.path_posterior(path_model, path_likelihood(maps, particles, noise), key=key)
    low, high = Profile.of(posterior).band()

samples it, as `hetmodels profile` does.

The bands are those of the prior: over truths drawn from it nine in ten lie inside. A profile that the prior finds
unlikely, wells with two steep walls say, is covered less often (400 images on 9 nodes, wells of 3 kT and walls of 9, an
error of one node: 82 % of the true values over 200 sets).

The weights of an ensemble without a path, by maximum likelihood up to a certified gap, are
`hetmodels.analysis.mixtures.mixture_weights` of the same likelihoods.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.data.particles import Particles
from hetmodels.errors import UsageError
from hetmodels.imaging.slices import Lattice
from hetmodels.local import centred_images, component_slices, shell_statistics
from hetmodels.observation import Contrast, Known, Observation, Radial, marginal_ratio
from hetmodels.posterior import Posterior

_ROWS = 250
_COARSE = 0.5  # kT


def path_model(log_density: Array) -> None:
    """Sites `strength` (inverse variance of a step of the walk) and `step`; deterministic `free_energy` [kT], mean 0.

    A step of the walk is N(0, 1/strength). `step` is the step in units of s c / (s² + c²)^½, with s its standard
    deviation and c = 0.5 kT: of s itself where steps are finer than the images tell, of c where they are coarser.
    Chains then find neither a funnel nor a ridge (partial non-centring, Papaspiliopoulos, Roberts and Sköld 2007,
    Statistical Science 22).

    Args:
        log_density: log p(y_i | x_m) up to a constant per particle, (particles, nodes).
    """
    strength = numpyro.sample("strength", dist.LogNormal(0.0, 3.0))
    wide = jnp.sqrt(1 + 1 / (strength * _COARSE**2))
    step = numpyro.sample("step", dist.Normal(0.0, wide).expand([log_density.shape[1] - 1]).to_event(1))
    walk = jnp.concatenate([jnp.zeros(1), jnp.cumsum(step)]) / (jnp.sqrt(strength) * wide)
    energy = numpyro.deterministic("free_energy", walk - walk.mean())
    mixed = jax.nn.logsumexp(log_density - energy, axis=1) - jax.nn.logsumexp(-energy)
    numpyro.factor("images", mixed.sum())


def path_likelihood(
    maps: np.ndarray, particles: Particles, noise: np.ndarray, contrast: Contrast | None = None, order: int = 1
) -> np.ndarray:
    """log p(y_i | x_m) - log p(y_i | noise only) at the file's poses, the contrast integrated, (particles, nodes).

    Poses that were refined against one of the maps favour it.

    Args:
        maps: of the nodes, in the box of the data, (nodes, N, N, N).
        particles: the images, all of them.
        noise: variance relative to the reference spectrum, (groups, shells), as a Posterior has it.
        contrast: prior of the contrast.
        order: interpolation order of the slices.

    Raises:
        UsageError: if the maps do not fit the images.
    """
    if maps.ndim != 4 or maps.shape[1:] != (particles.size,) * 3:
        raise UsageError(
            f"path_likelihood: maps must have shape (nodes, {particles.size}, {particles.size}, {particles.size}), "
            f"got {maps.shape}."
        )
    obs = Observation(particles.disc, particles.spacing, len(noise), len(particles), Known(), Radial(), contrast)
    lattice = Lattice(particles.size, particles.spacing, 2, order)
    table = lattice.table(jnp.asarray(maps, jnp.float32))
    score = jax.jit(partial(_scores, lattice, obs))
    found = []
    for batch in particles.batches(np.arange(len(particles)), min(_ROWS, len(particles))):
        keep = np.asarray(batch.weight) > 0
        found.append(np.asarray(score(table, jnp.asarray(noise, jnp.float32), batch))[keep])
    return np.concatenate(found)


def _scores(lattice: Lattice, obs: Observation, table: Array, noise: Array, batch: Batch) -> Array:
    slices, _ = component_slices(lattice, table, batch, obs)
    pairs = tuple((i, i) for i in range(slices.shape[-1]))
    found = shell_statistics(centred_images(batch, obs), slices, batch.ctf, obs.disc, pairs)
    weight = 1 / noise[batch.group][:, None, :]
    return marginal_ratio((found.cross * weight).sum(-1), (found.square * weight).sum(-1), obs.contrast)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """The free energy along a path.

    Attributes:
        draws: with each draw's least value at 0 [kT], (draws, nodes).
    """

    draws: np.ndarray

    @classmethod
    def of(cls, posterior: Posterior) -> "Profile":
        """Of a fit of `path_model`.

        Raises:
            UsageError: if it is a fit of something else, or of one draw.
        """
        if "free_energy" not in posterior.shared or posterior.point:
            raise UsageError("Profile: this needs draws of free_energy; fit path_model by an engine that samples.")
        flat = posterior.shared["free_energy"].astype(float)
        flat = flat.reshape(-1, flat.shape[-1])
        return cls(flat - flat.min(1, keepdims=True))

    @property
    def median(self) -> np.ndarray:
        """At each node [kT], (nodes,)."""
        return np.median(self.draws, axis=0)

    def band(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Central interval at each node [kT], (nodes,) each."""
        tail = (1 - level) / 2
        low, high = np.quantile(self.draws, [tail, 1 - tail], axis=0)
        return low, high

    def barrier(self, start: int, end: int) -> np.ndarray:
        """Draws of the highest energy between two nodes above that of the first [kT], (draws,)."""
        first, last = sorted((start, end))
        return self.draws[:, first : last + 1].max(1) - self.draws[:, start]
