"""Posterior predictive replicates: what data a fitted model would show, beside what was seen, for ArviZ.

Of particles, the power per shell of whitened images: the images of a few dozen particles, and replicates of them at
latents and shared values drawn from their posteriors, with new noise. Of a model function, every observed site.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer import Predictive

from hetmodels.data.batch import Batch
from hetmodels.model import Observed, per_particle, render
from hetmodels.observation import Known
from hetmodels.plain import PlainProblem, Sites
from hetmodels.problem import ParticleProblem

MOST = 32  # particles
_NUMBERS = 5_000_000  # of replicated observations of a model function at most


def of_particles(
    problem: ParticleProblem, draws: list[Sites], local: dict[str, np.ndarray], key: Array
) -> dict[str, np.ndarray]:
    """Replicates of particles, the held-out ones first, named as in `Posterior.extra`.

    Args:
        problem: of a family.
        draws: shared values.
        local: posterior of all particles' latents, by the names of `Local`.
        key: random key.

    Returns:
        `observed_data/shell_power` (particles, shells): mean of |y|^2 over each shell, whitened by the reference
        spectrum; `posterior_predictive/shell_power` (1, draws, particles, shells); `constant_data/checked`: which rows.
    """
    rows = checked_rows(problem)
    batch = problem.batch(rows)
    names = ("mean", "covariance", "responsibilities", "contrast", "rotation", "shift")
    known = {name: jnp.asarray(local[name][rows]) for name in names}
    replicate = jax.jit(
        lambda key, shared, known, batch: mean_power(problem, _images(problem, key, shared, known, batch))
    )
    made = [replicate(jax.random.fold_in(key, i), shared, known, batch) for i, shared in enumerate(draws)]
    return {
        "posterior_predictive/shell_power": np.stack([np.asarray(one) for one in made])[None],
        "observed_data/shell_power": np.asarray(mean_power(problem, batch.images)),
        "constant_data/checked": rows,
    }


def checked_rows(problem: ParticleProblem) -> np.ndarray:
    """Rows of the particles that are replicated: held-out ones where there are any."""
    held = np.flatnonzero(problem.particles.held_out)
    pool = held if len(held) else problem.training
    return pool[np.unique(np.linspace(0, len(pool) - 1, min(MOST, len(pool))).astype(int))]


def mean_power(problem: ParticleProblem, images: Array) -> Array:
    """Mean of |y|^2 over each shell, (rows, shells)."""
    member = np.eye(problem.observation.disc.shells)[problem.observation.disc.shell]
    return (images.real**2 + images.imag**2) @ jnp.asarray(member / np.maximum(member.sum(0), 1), jnp.float32)


def _images(problem: ParticleProblem, key: Array, shared: Sites, known: Sites, batch: Batch) -> Array:
    """Images at latents drawn from their posterior: nodes by their probabilities, others as normals."""
    family, observation = problem.family, dataclasses.replace(problem.observation, pose=Known())
    key_z, key_noise = jax.random.split(key)
    batch = dataclasses.replace(batch, rotation=known["rotation"], shift=known["shift"])
    data = Observed(batch, observation, shared["noise"], shared.get("junk"))
    prior = family.conformation(shared)
    if prior is None:
        volume = family.volume(shared, None)
    else:
        z = jax.vmap(lambda key, one: _latent(family, shared, prior, key, one))(
            jax.random.split(key_z, len(batch.weight)), known
        )
        volume = per_particle(lambda z: family.volume(shared, z), z)
    model = known["contrast"][:, None] * render(volume, data, {})
    real, imaginary = jax.random.normal(key_noise, (2, *model.shape))
    return model + jnp.sqrt(data.variance / 2) * (real + 1j * imaginary)


def _latent(family: Any, shared: Sites, prior: Any, key: Array, known: Sites) -> Any:
    """A draw of one particle's latent; its mean where a normal leaves the support."""
    mean = known["mean"]
    if not len(mean):
        return family.grids(shared)[0][jax.random.categorical(key, jnp.log(known["responsibilities"]))]
    laws = prior if isinstance(prior, dict) else {"z": prior}
    _, unravel = ravel_pytree({name: jnp.zeros(law.event_shape) for name, law in laws.items()})
    values, vectors = jnp.linalg.eigh(known["covariance"])
    root = vectors * jnp.sqrt(jnp.maximum(values, 0))
    drawn, centre = unravel(mean + root @ jax.random.normal(key, mean.shape)), unravel(mean)
    inside = {name: jnp.all(law.support(drawn[name])) for name, law in laws.items()}
    z = {name: jnp.where(inside[name], drawn[name], centre[name]) for name in laws}
    return z if isinstance(prior, dict) else z["z"]


def of_function(problem: PlainProblem, shared: dict[str, np.ndarray], key: Array) -> dict[str, np.ndarray]:
    """Replicates of the observed sites of a model function, `posterior_predictive/…` (chains, draws, …).

    All draws, or as many of each chain as give five million numbers. Factors are no data and have none.
    """
    draws = {name: value for name, value in shared.items() if name in problem.sites}
    first = handlers.substitute(problem.model, data={name: v[0, 0] for name, v in draws.items()})
    with handlers.block():
        trace = handlers.trace(handlers.seed(first, jax.random.key(0))).get_trace(problem.data)
    seen = [
        name
        for name, site in trace.items()
        if site["type"] == "sample" and site["is_observed"] and np.size(site["value"])
    ]
    laws = {name: trace[name]["fn"] for name in seen}
    seen = [name for name in seen if type(getattr(laws[name], "base_dist", laws[name])).__name__ != "Unit"]
    if not seen or not draws:
        return {}
    size = sum(np.size(trace[name]["value"]) for name in seen)
    chains, count = next(iter(draws.values())).shape[:2]
    kept = np.unique(np.linspace(0, count - 1, max(1, min(count, _NUMBERS // (size * chains)))).astype(int))
    thin = {name: jnp.asarray(v[:, kept]) for name, v in draws.items()}

    def unseen(*args: Any) -> Any:
        with _Forgotten(seen):
            return problem.model(*args)

    made = Predictive(unseen, thin, return_sites=seen, batch_ndims=2)(key, problem.data)
    return {f"posterior_predictive/{name}": np.asarray(value) for name, value in made.items()}


class _Forgotten(handlers.block):
    """Observed sites are drawn anew."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        super().__init__(hide=[])

    def process_message(self, msg: dict[str, Any]) -> None:
        """Called by NumPyro for every site."""
        if msg["type"] == "sample" and msg["name"] in self.names:
            msg["is_observed"], msg["value"] = False, None
