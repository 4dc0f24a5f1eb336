"""The likelihood of a linear family summed over some poses of each image, as engines that climb by gradients need it.

A search (`hetmodels.search`) says which cells of a grid over poses hold an image's posterior, and the prior mass of
each. With these fixed, log sum_k m_k p(y | pose k) is a lower bound of the log likelihood, by what all other cells
hold; it is differentiable in maps, noise and weights, and its gradient is the posterior mean of the gradients.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.families.protocol import Moving, Shared, shown
from hetmodels.imaging.poses import Support
from hetmodels.local import (
    centred_images,
    collapsed_ratio,
    component_lattice,
    component_slices,
    design_moments,
    mixing_pairs,
    shell_statistics,
)
from hetmodels.observation import Observation, split_junk


def summed_ratio(
    family: Any, shared: Shared, batch: Batch, observation: Observation, noise: Array, junk: Array | None
) -> Array:
    """log p(y | shared) - log p(y | noise only) summed over `batch.poses`, all else integrated, (rows,).

    Args:
        family: a linear family whose latents integrate in closed form.
        shared: its shared values.
        batch: the images with their poses.
        observation: how densities become images.
        noise: variance relative to the reference spectrum, (groups, shells).
        junk: share of junk, or None.
    """
    assert batch.poses is not None
    ratio = ratios(family, shared, batch, observation, noise)
    total = jax.nn.logsumexp(ratio + batch.poses.log_prior, axis=1)
    return split_junk(total, observation, batch, observation.pixel_variance(noise, batch.group), junk)[0]


def ratios(family: Any, shared: Shared, batch: Batch, observation: Observation, noise: Array) -> Array:
    """log p(y | pose) - log p(y | noise only) at each of `batch.poses`, latents and contrast integrated, (rows, K)."""
    lattice, pairs = component_lattice(family), mixing_pairs(family, shared)
    moving = isinstance(family, Moving)
    table = None if moving else lattice.table(shown(family, shared))

    @jax.checkpoint
    def at(pose: Support) -> Array:
        placed = dataclasses.replace(batch, rotation=pose.rotation, shift=pose.shift, poses=None)
        if table is None:
            return collapsed_ratio(family, shared, placed, observation, noise, None)
        slices, _ = component_slices(lattice, table, placed, observation)
        images = centred_images(placed, observation)
        found = shell_statistics(images, slices, placed.ctf, observation.disc, pairs)
        return design_moments(family, shared, *found.weighted(noise[placed.group]), observation.contrast).log_ratio

    return jax.lax.map(at, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), batch.poses)).T
