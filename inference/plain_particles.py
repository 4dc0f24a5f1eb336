"""A model function of images, particle by particle: its sites inside the plate are a particle's latents.

With the sites outside the plate given, a particle's latents are integrated by importance sampling about the mode of
their density. This gives what ArviZ compares models by: log p(y_i | shared), never a density given latents, whose
importance weights have no variance as soon as an image says much (see Vehtari et al. 2017, Stat. Comput. 27).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro import handlers

from hetmodels.data.batch import Batch
from hetmodels.laplace import Weighted, integrate, maximum
from hetmodels.observation import marginal_ratio
from hetmodels.plain import Sites
from hetmodels.problem import ParticleProblem
from inference.replicates import checked_rows, mean_power
from inference.sites import PLATE, is_discrete, local_sites

DRAWS = 200  # of a particle's latents
_POINTS = 2**21  # Fourier pixels of images that are rendered at a time


def groups_of(problem: ParticleProblem, draws: list[Sites], key: Array) -> dict[str, np.ndarray]:
    """Log evidence of every particle and replicates of a few, named as in `Posterior.extra`.

    Empty where a latent of the particles takes integer values, which this does not sum over; without replicates where
    the model does not show each particle by one `observe`.

    Args:
        problem: of a model function of images.
        draws: shared values.
        key: random key.

    Returns:
        `log_likelihood/training` and `log_likelihood/held_out` (1, draws, particles), log p(y) - log p(y | noise only);
        `posterior_predictive/shell_power`, `observed_data/shell_power` and `constant_data/checked` as of a family, see
        `inference.replicates`; `constant_data/held_out`.
    """
    latents = local_sites(problem)
    if any(is_discrete(problem, name) for name in latents):
        return {}
    draws = [{k: v for k, v in one.items() if k not in latents} for one in draws]
    of_rows, images_of = jax.jit(partial(_rows, problem)), jax.jit(partial(_replicates, problem))
    size = max(1, min(500, _POINTS // (DRAWS * problem.observation.disc.pixels)))
    each = []
    for number, batch in enumerate(problem.every(size)):
        keep, step = np.asarray(batch.weight) > 0, jax.random.fold_in(key, number)
        each.append(np.stack([np.asarray(of_rows(step, shared, batch)[1])[keep] for shared in draws]))
    evidence, held = np.concatenate(each, axis=1), problem.particles.held_out
    found = {
        "log_likelihood/training": evidence[None][..., ~held],
        "log_likelihood/held_out": evidence[None][..., held],
        "constant_data/held_out": held,
    }
    if _renders_once(problem, draws[0]):
        size = min(size, len(problem.particles))
        rows = checked_rows(problem)[:size]
        batch, steps = problem.batch(rows, size), [jax.random.fold_in(key, len(held) + i) for i in range(len(draws))]
        seen = [of_rows(step, shared, batch)[0] for step, shared in zip(steps, draws, strict=True)]
        made = [images_of(step, shared, batch, own) for step, shared, own in zip(steps, draws, seen, strict=True)]
        found |= {
            "posterior_predictive/shell_power": np.stack([np.asarray(one)[: len(rows)] for one in made])[None],
            "observed_data/shell_power": np.asarray(mean_power(problem, batch.images))[: len(rows)],
            "constant_data/checked": rows,
        }
    return {name: value for name, value in found.items() if value.size}


def _renders_once(problem: ParticleProblem, shared: Sites) -> bool:
    """Whether the model shows each particle by one `observe`, so that new images of it can be made."""
    shown: list[str] = []

    def look(batch: Batch) -> None:
        start, split = _unravel(problem)
        rows = len(batch.weight)
        latents = {name: jnp.broadcast_to(v, (rows, *v.shape)) for name, v in split(start)[0].items()}
        shown.extend(name for name, site in _trace(problem, shared, latents, batch).items() if _is_model(name, site))

    jax.eval_shape(look, problem.example())
    return len(shown) == 1


def _is_model(name: str, site: dict[str, Any]) -> bool:
    return site["type"] == "deterministic" and name.endswith("_model")


def _trace(problem: ParticleProblem, shared: Sites, latents: Sites, batch: Batch) -> dict[str, Any]:
    """The model's sites inside the plate at given values, for a batch of any size."""
    known = {name: value for name, value in shared.items() if name in problem.sites} | latents
    with handlers.block():
        model = handlers.seed(handlers.substitute(problem.model, data=known), jax.random.key(0))
        trace = handlers.trace(model).get_trace(batch)
    return {n: s for n, s in trace.items() if any(f.name == PLATE for f in s.get("cond_indep_stack", ()))}


def _unravel(problem: ParticleProblem) -> tuple[Array, Callable[[Array], tuple[Sites, Array]]]:
    """Where to begin, and from unconstrained numbers of one particle to its latents and their log Jacobian."""
    shapes = {name: jnp.zeros(problem.sites[name]["value"].shape[1:]) for name in local_sites(problem)}
    flat, unravel = ravel_pytree(shapes)

    def split(u: Array) -> tuple[Sites, Array]:
        out, log_det = {}, jnp.zeros(())
        for name, raw in unravel(u).items():
            transform = problem._transform(name)
            out[name] = transform(raw)
            log_det += jnp.sum(transform.log_abs_det_jacobian(raw, out[name]))
        return out, log_det

    return flat, split


def _rows(problem: ParticleProblem, key: Array, shared: Sites, batch: Batch) -> tuple[Weighted, Array]:
    """Weighted draws of the latents of each particle, and its log evidence against noise alone, (rows,)."""
    start, split = _unravel(problem)

    def density(u: Array, one: Batch) -> Array:
        latents, log_det = split(u)
        trace = _trace(problem, shared, {name: v[None] for name, v in latents.items()}, one)
        return log_det + sum(jnp.sum(s["fn"].log_prob(s["value"])) for s in trace.values() if s["type"] == "sample")

    def each(key: Array, row: Batch) -> Weighted:
        one = jax.tree.map(lambda leaf: leaf[None], row)
        if not len(start):
            return Weighted(start[None], jnp.ones(1), density(start, one), jnp.zeros(()))
        centre, precision = maximum(lambda u: density(u, one), start)
        return integrate(key, lambda u: density(u, one), centre, precision, DRAWS)

    found = jax.vmap(each)(jax.random.split(key, len(batch.weight)), batch)
    variance = problem.observation.pixel_variance(shared["noise"], batch.group)
    return found, found.log_evidence - problem.observation.zero_ratio(batch.images, variance)


def _replicates(problem: ParticleProblem, key: Array, shared: Sites, batch: Batch, found: Weighted) -> Array:
    """Mean power per shell of new images of some particles, at latents and contrasts from their posteriors."""
    key_pick, key_a, key_noise = jax.random.split(key, 3)
    _, split = _unravel(problem)
    chosen = jax.random.categorical(key_pick, jnp.log(found.weights), axis=-1)
    u = jnp.take_along_axis(found.draws, chosen[:, None, None], axis=1)[:, 0]

    def image(u: Array, row: Batch) -> Array:
        latents = {name: v[None] for name, v in split(u)[0].items()}
        sites = _trace(problem, shared, latents, jax.tree.map(lambda leaf: leaf[None], row))
        return next(site["value"][0] for name, site in sites.items() if _is_model(name, site))

    model = jax.vmap(image)(u, batch)
    variance = problem.observation.pixel_variance(shared["noise"], batch.group)
    if problem.observation.contrast is not None:
        linear = 2 * jnp.sum((jnp.conj(batch.images) * model).real / variance, axis=-1)
        quadratic = jnp.sum((model.real**2 + model.imag**2) / variance, axis=-1)
        _, mean, second = marginal_ratio(linear, quadratic, problem.observation.contrast)
        spread = jnp.sqrt(jnp.maximum(second - mean**2, 0))
        model = (mean + spread * jax.random.normal(key_a, mean.shape))[:, None] * model
    real, imaginary = jax.random.normal(key_noise, (2, *model.shape))
    return mean_power(problem, model + jnp.sqrt(variance / 2) * (real + 1j * imaginary))
