"""`fit`: a model, data and an engine in; a `Posterior` out."""

import dataclasses
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.data.particles import Particles
from hetmodels.errors import UsageError
from hetmodels.families.protocol import Frame, Gaussian, Linear, Mixed, Neural, framed, mixture_of
from hetmodels.initial import first_spectra
from hetmodels.observation import Contrast, Known, Observation, Outliers, Radial
from hetmodels.plain import PlainProblem, Sites
from hetmodels.posterior import Posterior
from hetmodels.problem import ParticleProblem
from inference.diagnostics import pointwise
from inference.engine import Log, Result, require, run
from inference.plain_particles import groups_of
from inference.pose_table import summed
from inference.predictive import by_band, information, mixed, reference_ratio
from inference.replicates import of_function, of_particles

_PACKAGES = ("hetmodels", "jax", "jaxlib", "numpyro", "blackjax", "optax", "numpy")
_LOCAL_DRAWS = 8


def fit(  # noqa: PLR0913 - one argument per choice of the user, all but three by name
    model: Any,
    data: Any,
    engine: Any,
    *,
    key: Array,
    pose: Any = Known(),  # noqa: B008
    noise: Any = Radial(),  # noqa: B008
    contrast: Contrast | None = None,
    outliers: Outliers | None = None,
    halves: bool = False,
    holdout: float = 0.1,
    start: Any = None,
    given: Any = None,
    log: Log | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    budget: float | None = None,
    every: float = 30.0,
) -> Posterior:
    """Fit a model to data.

    Args:
        model: a family, a NumPyro function of an observed batch, or any NumPyro function.
        data: Particles, or a dict of the function's arguments by name.
        engine: how to infer.
        key: random key.
        pose: what is known of the poses.
        noise: the noise's spectrum; a `Radial` without a start takes its first guess from the images.
        contrast: prior of the images' contrast, None to fix it at 1.
        outliers: a junk component, or None.
        halves: keep the two half sets apart until the last passes (linear families).
        holdout: fraction of the particles that do not train, whole micrographs, the same for all runs on the data.
        start: where to start: a Posterior of the same family, maps (components, N, N, N), or site values by name.
        given: what not to infer: a Posterior (its spectra, noise and networks are taken), or site values by name.
        log: where to report; see `inference.engine.run` for this and the following.
        checkpoint, resume, budget, every: see `inference.engine.run`.

    Raises:
        UsageError: if model, data and engine do not fit together.
        DataError: if the data cannot be used.
    """
    require(model, engine)
    if getattr(pose, "symmetry", "C1") != "C1" and not getattr(engine, "symmetric", False):
        name = type(engine).__name__.lower()
        raise UsageError(f"{name} cannot keep maps symmetric, and the symmetry is {pose.symmetry}: choose em.")
    begun = time.time()
    problem = make_problem(
        model, data, pose=pose, noise=noise, contrast=contrast, outliers=outliers, halves=halves, holdout=holdout,
        start=start, given=given,
    )  # fmt: skip
    problem = summed(engine, problem)
    key_run, key_local = jax.random.split(key)
    result = run(
        engine, problem, key=key_run, log=log, checkpoint=checkpoint, resume=resume, budget=budget, every=every
    )
    return _posterior(problem, engine, result, key_local, {"seconds": round(time.time() - begun, 2)})


def make_problem(
    model: Any,
    data: Any,
    *,
    pose: Any,
    noise: Any,
    contrast: Contrast | None,
    outliers: Outliers | None,
    halves: bool,
    holdout: float,
    start: Any,
    given: Any,
) -> PlainProblem:
    """What an engine will see; the arguments are those of `fit`."""
    if not isinstance(data, Particles):
        if not isinstance(data, dict):
            raise UsageError(f"fit: data must be Particles or a dict of arguments by name, got {type(data).__name__}.")
        return PlainProblem(model, data, _site_values(None, given), _site_values(None, start))
    if halves and (not isinstance(model, Linear) or isinstance(model, Gaussian)):
        raise UsageError(
            "fit: halves needs a linear family without a continuous latent; fit particles.subset(particles.half == h) "
            "by two runs."
        )
    data.require_even()
    if hasattr(pose, "framed"):
        pose = pose.framed(data.spacing)
    else:
        data.require_poses()
    particles = data.with_holdout(holdout)
    first, frame = first_spectra(particles)
    family = framed(model, frame) if hasattr(model, "shared") else model
    copies = 2 if halves else 1
    if isinstance(noise, Radial) and noise.start is None:
        noise = Radial(tuple(map(tuple, np.tile(first, (copies, 1)).tolist())))
    groups, count = copies * particles.groups, int((~particles.held_out).sum())
    observation = Observation(particles.disc, particles.spacing, groups, count, pose, noise, contrast, outliers)
    given = _site_values(family, given)
    if "noise" in given:
        given["noise"] = _noise_of(given["noise"], groups)
    problem = ParticleProblem.of(family, particles, observation, given, halves=halves)
    if start is None:
        return problem
    return dataclasses.replace(problem, start=_start_values(problem, start, frame))


def _noise_of(noise: Array, groups: int) -> Array:
    """The noise spectra of another run, (groups, shells): half sets are averaged, or take the same, as need be.

    Raises:
        UsageError: if the numbers of groups do not fit.
    """
    if len(noise) == 2 * groups:
        return noise.reshape(2, groups, -1).mean(0)
    if 2 * len(noise) == groups:
        return jnp.tile(noise, (2, 1))
    if len(noise) != groups:
        raise UsageError(
            f"fit: the noise given has {len(noise)} groups, this run has {groups}; take it from a run with the same "
            "optics groups."
        )
    return noise


def _site_values(family: Any, given: Any) -> Sites:
    """Values of sites to fix or start from: as named, or the point-estimated sites of a Posterior."""
    if given is None:
        return {}
    if isinstance(given, Posterior):
        shared = given.shared_point()
        sites = {} if family is None else family.sites(shared)
        network = family.weights() if isinstance(family, Neural) else ()
        latent = () if family is None or mixture_of(family, shared) is None else ("means", "covariances")
        spectra = {k: v for k, v in sites.items() if k.endswith("tau2") or k in (*network, *latent)}
        return spectra | {k: v for k, v in shared.items() if k == "noise"}
    if not isinstance(given, dict):
        raise UsageError(f"fit: given and start take a Posterior or a dict by site name, got {type(given).__name__}.")
    return {name: jnp.asarray(value) for name, value in given.items()}


def _start_values(problem: ParticleProblem, start: Any, frame: Frame) -> Sites:
    """Shared values to start from."""
    family = problem.family
    if isinstance(start, Posterior):
        shared = start.shared_point()
        if type(start.family) is not type(family):
            raise UsageError(
                f"fit: start is a run of {type(start.family).__name__}, this one of {type(family).__name__}."
            )
        wanted = problem.shared(problem.initial(jax.random.key(0)))
        shared = {name: value for name, value in shared.items() if name in wanted}
        for name, value in shared.items():
            if name != "noise" and jnp.shape(value) != jnp.shape(wanted[name]):
                raise UsageError(
                    f"fit: start has {name} of shape {jnp.shape(value)}, this run needs {jnp.shape(wanted[name])}; "
                    "start from a run of the same box and settings."
                )
        if "noise" in shared:
            shared["noise"] = _noise_of(shared["noise"], len(wanted["noise"]))
        return shared
    if isinstance(start, dict):
        return {name: jnp.asarray(value) for name, value in start.items()}
    return _from_maps(problem, np.asarray(start, np.float32), frame)


def _from_maps(problem: ParticleProblem, maps: np.ndarray, frame: Frame) -> Sites:
    family = problem.family
    if not isinstance(family, Linear):
        raise UsageError(f"fit: {type(family).__name__} cannot start from maps; only linear families can.")
    shared = problem.shared(problem.initial(jax.random.key(0)))
    wanted = family.components(shared).shape
    maps = maps[None] if maps.ndim == 3 else maps
    if maps.shape[1:] != wanted[1:] or maps.shape[0] not in (1, wanted[0], getattr(family, "classes", 1)):
        raise UsageError(
            f"fit: start has maps of shape {maps.shape}, this run needs {wanted} (one map serves for all)."
        )
    arranged = getattr(family, "from_maps", lambda maps: jnp.broadcast_to(maps, wanted))
    components = arranged(jnp.asarray(maps))
    occupancy = jnp.ones(len(family.grids(shared)[1]) if hasattr(family, "grids") else 1)
    found = dict(family.updated(shared, components, family.spectra(shared), occupancy))
    if isinstance(family, Mixed) and (mixture := family.latent_mixture(shared)) is not None:
        said = family.with_mixture({}, mixture)  # maps say nothing of the latents
        found = {name: value for name, value in found.items() if name not in said}
    return found


def _posterior(problem: PlainProblem, engine: Any, result: Result, key: Array, more: dict[str, Any]) -> Posterior:
    point = not result.draws
    if point:
        draw = engine.draw(key, problem, result.state)
        shared = {name: np.asarray(value)[None, None] for name, value in draw.items()}
    else:
        shared = result.draws
    family = getattr(problem, "family", None)
    extra = getattr(engine, "extra", None)
    more_arrays = extra(problem, result.state) if extra else {}
    local: dict[str, np.ndarray] = {}
    if isinstance(problem, ParticleProblem) and family is not None:
        offer = getattr(engine, "proposal", None)
        about = offer(problem, result.state) if offer else None
        options = {} if about is None else {"about": about, "count": engine.proposals}
        local, each, seen = local_posterior(problem, thinned(shared), key, **options)
        held = local["held_out"]
        more_arrays |= seen | of_particles(problem, thinned(shared), local, jax.random.fold_in(key, len(held)))
        if not point:
            more_arrays |= {
                "log_likelihood/training": each[None][..., ~held],
                "log_likelihood/held_out": each[None][..., held],
            }
    elif isinstance(problem, ParticleProblem):
        more_arrays |= groups_of(problem, thinned(shared), key)
    else:
        more_arrays |= pointwise(problem, shared) | of_function(problem, shared, key)
    return Posterior(
        family=family,
        shared=shared,
        point=point,
        local=local,
        stats=getattr(result, "stats", {}),
        trace=result.trace,
        provenance=_provenance(problem, engine) | {"complete": result.complete} | more,
        extra=more_arrays,
    )


def thinned(shared: dict[str, np.ndarray]) -> list[Sites]:
    """At most eight draws, evenly spread over chains and draws."""
    chains, draws = next(iter(shared.values())).shape[:2]
    chosen = np.unique(np.linspace(0, chains * draws - 1, min(_LOCAL_DRAWS, chains * draws)).astype(int))
    return [{k: jnp.asarray(v[i // draws, i % draws]) for k, v in shared.items()} for i in chosen]


def local_posterior(
    problem: ParticleProblem,
    draws: list[Sites],
    key: Array,
    about: Callable[[Batch], Any] = lambda batch: None,
    count: int = 200,
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    """`Problem.infer` of every particle, held-out ones included, averaged over draws of the shared values.

    Args:
        problem: what the engine saw.
        draws: shared values.
        key: random key.
        about: the engine's own approximation of a batch's latents, to sample about; see `Problem.infer`.
        count: draws per particle where latents are sampled.

    Returns:
        The fields of `Local`, `log_predictive` and the splits, by name; the log evidence at each draw, (draws,
        particles); the scores of held-out particles by band, see `by_band`, and the mean `information` of an image.
    """
    infer = partial(problem.infer if problem.searches else jax.jit(problem.infer, static_argnames="draws"), draws=count)
    rows = problem.rows_at_once(count)
    parts: list[dict[str, np.ndarray]] = []
    evidence: list[np.ndarray] = []
    gathered = np.zeros(problem.observation.disc.shells)
    for number, batch in enumerate(problem.every(rows)):
        step = jax.random.fold_in(key, number)
        keep = np.asarray(batch.weight) > 0
        found = [_fields(infer(step, shared, batch, about(batch)), keep) for shared in draws]
        for one, shared in zip(found, draws, strict=True):
            one["log_predictive"] = one["log_evidence"] + reference_ratio(problem, shared["noise"], batch)[keep]
        evidence.append(np.stack([one["log_evidence"] for one in found]))
        gathered += information(problem, draws[0]["noise"], batch)
        splits = {"half": np.asarray(batch.half)[keep], "held_out": np.asarray(batch.held_out)[keep] > 0}
        parts.append(_averaged(found) | splits)
    local = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    local["unit"] = problem.particles.splits.unit[problem.particles.rows]
    seen = by_band(problem, draws, infer, key, min(rows, len(problem.particles)))
    seen["information"] = gathered / len(problem.particles)
    return local, np.concatenate(evidence, axis=1), seen


def _fields(local: Any, keep: np.ndarray) -> dict[str, np.ndarray]:
    """Fields of a `Local` by name, padding rows dropped; those that are None left out."""
    values = {f.name: getattr(local, f.name) for f in dataclasses.fields(local)}
    return {name: np.asarray(value)[keep] for name, value in values.items() if value is not None}


def _averaged(found: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Mixture over draws: means, the law of total variance, and the evidence averaged as a density."""
    if len(found) == 1:
        return found[0]
    mean = {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}
    spread = np.stack([one["mean"] for one in found]) - mean["mean"]
    mean["covariance"] = mean["covariance"] + np.einsum("dni,dnj->nij", spread, spread) / len(found)
    for name in ("log_evidence", "log_predictive"):
        mean[name] = mixed(np.stack([one[name] for one in found]))
    return mean | {name: value for name, value in found[0].items() if name.endswith("_top")}


def _provenance(problem: PlainProblem, engine: Any) -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    facts: dict[str, Any] = {"versions": versions, "engine": repr(engine), "device": str(jax.devices()[0])}
    if isinstance(problem, ParticleProblem):
        particles, obs = problem.particles, problem.observation
        choices = {
            "pose": obs.pose,
            "noise": type(obs.noise).__name__,
            "contrast": obs.contrast,
            "outliers": obs.outliers,
        }
        facts |= {name: str(choice) for name, choice in choices.items()}
        facts |= {"data_hash": particles.data_hash, "box": particles.size, "spacing": particles.spacing}
        facts |= {"band": particles.disc.limit, "window": particles.window, "halves": problem.halves}
        facts |= {"particles": len(particles), "training": problem.size}
    return facts
