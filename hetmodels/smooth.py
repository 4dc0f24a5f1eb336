"""The likelihood of shared values where latents, poses with them, are integrated by Laplace's approximation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro.distributions import biject_to

from hetmodels.families.protocol import Shared
from hetmodels.laplace import marginal
from hetmodels.model import Observed, image_ratio, per_particle, render


def laplace_ratio(family: Any, shared: Shared, data: Observed) -> Array:
    """log p(y | shared) - log p(y | noise of the reference spectrum), latents and poses integrated, (rows,).

    Args:
        family: of the protocol `Smooth`.
        shared: its shared values.
        data: the batch.
    """
    named = isinstance(family.conformation(shared), dict)
    origin = family.origin(shared)
    values = dict(origin) if named else {"z": origin}
    values |= {f"pose_{name}": jnp.zeros(law.event_shape) for name, law in data.observation.pose.prior().items()}
    laws = _laws(family, shared, data)
    start, unravel = ravel_pytree({name: biject_to(laws[name].support).inv(value) for name, value in values.items()})

    def joint(given: tuple[Shared, Array, Array | None], u: Array, one: Any) -> Array:
        shared, noise, junk = given
        seen = dataclasses.replace(data, batch=jax.tree.map(lambda leaf: leaf[None], one), noise=noise, junk=junk)
        total, found = jnp.zeros(()), {}
        for name, law in _laws(family, shared, data).items():
            transform, raw = biject_to(law.support), unravel(u)[name]
            found[name] = transform(raw)
            total = total + law.log_prob(found[name]) + jnp.sum(transform.log_abs_det_jacobian(raw, found[name]))
        poses = {name[5:]: value[None] for name, value in found.items() if name.startswith("pose_")}
        z = {name: value[None] for name, value in found.items() if not name.startswith("pose_")}
        volume = per_particle(lambda z: family.volume(shared, z), z if named else z["z"])
        return total + image_ratio(seen, render(volume, seen, poses))[0]

    given = (shared, data.noise, data.junk)
    return jax.vmap(lambda one: marginal(lambda given, u: joint(given, u, one), given, start))(data.batch)


def _laws(family: Any, shared: Shared, data: Observed) -> dict[str, Any]:
    """Priors of one particle's latents and pose by the names of their sites."""
    prior = family.conformation(shared)
    poses = {f"pose_{name}": law for name, law in data.observation.pose.prior().items()}
    return (prior if isinstance(prior, dict) else {"z": prior}) | poses
