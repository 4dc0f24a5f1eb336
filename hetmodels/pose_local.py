"""What a fitted linear family says of each particle where poses are unknown: its latents, its pose, its evidence."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.local import Local, image_design
from hetmodels.observation import Observation, split_junk
from hetmodels.polish import polished
from hetmodels.scoring import Templates

_LACKING = 1.0  # nats that the last grid may lack: measured, at 3 a set of mass 1/2 holds the pose in 1/3 of images


def searched_local(
    family: Any, shared: Any, batch: Batch, observation: Observation, noise: Array, junk: Array | None
) -> Local:
    """The posterior of a linear family's latents and of poses, searched within their prior with the full band.

    The grid stays where it is, and is as fine as the images can tell poses apart, no finer: with a grid that lacks
    more, or whose cells are more than a search can keep, credible sets of poses hold the truth too rarely. The moments
    of the latents are those of the heaviest poses, at most `poses` of them.
    """
    pose, limit, rows = observation.pose, observation.disc.limit, len(batch.weight)
    plan = pose.plan(batch, observation.spacing, pose.oversampling, limit).seen_from(shared.get("directions"))
    templates = Templates.of(family, shared, observation, noise)
    plan = plan.resolved(templates, batch, _LACKING, 1)
    found = plan.run(templates, batch)
    share = found.weight / found.weight.sum(1, keepdims=True)
    parts = []
    for k in range(max(1, int((share > 0).sum(1).max()))):
        rotation, shift = jnp.asarray(found.rotation[:, k]), jnp.asarray(found.shift[:, k])
        turned = dataclasses.replace(batch, rotation=rotation, shift=shift)
        parts.append(_weighed(family, shared, turned, observation, noise, share[:, k]))
    mean, square, nodes, contrast = (sum(values[1:], values[0]) for values in zip(*parts, strict=True))
    spread = square - mean[:, :, None] * mean[:, None, :]
    variance = observation.pixel_variance(noise, batch.group)
    evidence, clean = split_junk(jnp.asarray(found.log_evidence), observation, batch, variance, junk)
    top = pose.top
    best = dataclasses.replace(batch, rotation=jnp.asarray(found.rotation[:, 0]), shift=jnp.asarray(found.shift[:, 0]))
    if pose.polish:
        best = polished(family, shared, observation, noise, best, plan.prior, pose.polish)
    return Local(
        mean, spread, nodes, contrast, 1 - clean, best.rotation, best.shift, evidence,
        jnp.zeros(rows), found.rotation[:, :top], found.shift[:, :top], found.weight[:, :top],
    )  # fmt: skip


@partial(jax.jit, static_argnames="observation")
def _weighed(
    family: Any, shared: Any, batch: Batch, observation: Observation, noise: Array, share: Array
) -> tuple[Array, ...]:
    """First and second moments of the latents, nodes and contrast at one pose per image, times its share."""
    found, _ = image_design(family, shared, batch, observation, noise)
    square = found.covariance + found.mean[:, :, None] * found.mean[:, None, :]
    moments = (found.mean, square, found.responsibilities, found.contrast)
    return tuple(m * share.reshape(-1, *[1] * (m.ndim - 1)) for m in moments)
