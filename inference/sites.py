"""What the general engines share about the sites of a model: which are local, what starts them, what is refused."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpyro import handlers
from numpyro.infer.util import constrain_fn
from numpyro.primitives import Messenger

from hetmodels.data.batch import Batch
from hetmodels.errors import UsageError
from hetmodels.families.protocol import Frame, framed
from hetmodels.plain import PlainProblem, Sites
from hetmodels.problem import ParticleProblem

PLATE = "particles"


def settings(engine: Any) -> str:
    """An engine as it was written; functions inside without their address, so that a resumed run prints the same."""
    inside = ", ".join(f"{name}={getattr(engine, name)!r}" for name in engine.__dataclass_fields__)
    return re.sub(r" at 0x[0-9a-f]+", "", f"{type(engine).__name__}({inside})")


def compiled(problem: PlainProblem, engine: Any, build: Callable[[], Any]) -> Any:
    """What was built for an engine on this problem: made once, it lives and dies with the problem."""
    store = problem.__dict__.setdefault("_compiled", {})
    if engine not in store:
        _ = problem.sites  # looked up outside any trace
        store[engine] = build()
    return store[engine]


def local_sites(problem: PlainProblem) -> list[str]:
    """Names of the unknown sites inside the plate over particles."""
    if not isinstance(problem, ParticleProblem):
        return []
    return [name for name, site in problem.sites.items() if any(f.name == PLATE for f in site["cond_indep_stack"])]


def refuse(problem: PlainProblem, engine: str, locals_too: bool = False, drawn: tuple[str, ...] = ()) -> None:
    """Refuse what an engine for continuous sites of one copy of the maps cannot do.

    Args:
        problem: what the engine sees.
        engine: its name.
        locals_too: refuse latents of the particles.
        drawn: sites that the engine draws by itself, which may be discrete.

    Raises:
        UsageError: naming the sites and the cure.
    """
    if getattr(problem, "halves", False):
        raise UsageError(
            f"{engine} fits one copy of the maps and cannot keep half sets apart; use em, or fit "
            "particles.subset(particles.half == h) by two runs."
        )
    discrete = [n for n in problem.sites if n not in drawn and is_discrete(problem, n)]
    if discrete:
        raise UsageError(
            f"{engine} needs continuous sites, but {', '.join(discrete)} takes integer values. Sum over them inside "
            "the model (numpyro.factor with logsumexp), or give the family `grids` (protocol Gridded): then they are."
        )
    local = local_sites(problem)
    if locals_too and local:
        raise UsageError(
            f"{engine} does not integrate over the latents of each particle ({', '.join(local)}), and their joint mode "
            "with the shared values is biased; use svi or mcmc."
        )


def need_given(problem: PlainProblem, engine: str) -> None:
    """Refuse parameters without a prior, which a sampler cannot draw.

    Raises:
        UsageError: naming them and the cure.
    """
    missing = problem.parameters()
    if missing:
        raise UsageError(
            f"{engine}: {', '.join(missing)} {'is a param site' if len(missing) == 1 else 'are param sites'} without a "
            "prior, which no sampler can draw. Give values: given=a Posterior of em, map or svi on the same data, "
            "or given={name: value}; or use an engine that estimates them (em, map, svi)."
        )


def is_discrete(problem: PlainProblem, name: str) -> bool:
    """Whether a site takes integer values."""
    site = problem.sites[name]
    return site["type"] == "sample" and site["fn"].support.is_discrete


def latent_free(model: Any) -> bool | None:
    """Whether a family (class or instance) leaves no latent of a particle to integrate numerically at known poses.

    None where it cannot be told without its settings.
    """
    if all(hasattr(model, name) for name in ("components", "spectra", "design", "updated")) and (
        hasattr(model, "grids") or hasattr(model, "latent_covariance")
    ):
        return True
    if hasattr(model, "origin"):  # Smooth: by Laplace's approximation
        return True
    try:
        family = model() if isinstance(model, type) else model
    except TypeError:
        return None
    family = framed(family, Frame(8, 1.0, (1.0,) * 4))
    found = []

    def look() -> Array:
        with handlers.block(), handlers.seed(rng_seed=0):
            found.append(family.conformation(family.shared()))
        return jnp.zeros(())

    jax.eval_shape(look)
    return found[0] is None


class Batched:
    """What engines have in common that take a batch in each step, or all data; a base of their dataclasses."""

    batch_size: int | None

    @property
    def whole(self) -> bool:
        """Whether a step sees all data."""
        return self.batch_size is None

    @property
    def shuffle(self) -> bool:
        """Batches are drawn anew in each pass."""
        return not self.whole


class ByGradients(Batched):
    """What engines have in common that climb by gradients, batch by batch; a base of their dataclasses."""

    iterations: int | None
    learning_rate: float | None
    optimiser: optax.GradientTransformation | None

    def _check(self) -> None:
        """Settings in range.

        Raises:
            ValueError: naming those that are not.
        """
        name = type(self).__name__
        given = [n for n in (self.iterations, self.batch_size) if n is not None]
        if given and min(given) < 1:
            raise ValueError(
                f"{name}: iterations and batch_size must be at least 1, got {self.iterations} and {self.batch_size}."
            )
        if self.optimiser is not None and self.learning_rate is not None:
            raise ValueError(f"{name}: the optimiser brings its own learning rate; give one of the two.")

    def steps_per_pass(self, problem: PlainProblem) -> int:
        """Batches of a pass."""
        return 1 if self.batch_size is None else max(1, math.ceil(problem.size / self.batch_size))

    def began(self, state: Any) -> tuple[Any, float]:
        """The state at the beginning of a pass, and the mean objective of the last one."""
        mean = float(state.objective) / int(state.batches)
        zero = jnp.zeros_like(state.objective)
        return dataclasses.replace(state, objective=zero, batches=jnp.zeros((), jnp.int32)), mean


class Rows(Messenger):
    """Makes a padded batch count as all particles: sites in the plate are rescaled by rows over real rows, and masked.

    Model and guide both run inside; a mask that is there already does no harm.
    """

    def __init__(self, batch: Any, share: Array | None = None) -> None:
        """Of a batch, or of a part of one whose share of real rows is given."""
        self.weight = batch.weight if isinstance(batch, Batch) else None
        self.share: Any = jnp.mean(batch.weight) if share is None and self.weight is not None else share
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        """Called by NumPyro for every site."""
        if self.weight is None or msg["type"] != "sample":
            return
        if any(frame.name == PLATE for frame in msg["cond_indep_stack"]):
            factor = 1 / self.share
            msg["scale"] = factor if msg["scale"] is None else msg["scale"] * factor
            msg["fn"] = msg["fn"].mask(self.weight > 0)


def split_arrays(tree: Any) -> tuple[list[Array], Callable[[list[Array]], Any]]:
    """The arrays in some data, which a compiled function takes as arguments, and how to put them back.

    Numbers and texts stay what they are, so that a model can use them as sizes.
    """
    leaves, structure = jax.tree.flatten(tree)
    dynamic = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]

    def join(arrays: list[Array]) -> Any:
        rest = iter(arrays)
        return jax.tree.unflatten(
            structure, [next(rest) if d else leaf for d, leaf in zip(dynamic, leaves, strict=True)]
        )

    return [leaf for d, leaf in zip(dynamic, leaves, strict=True) if d], join


def start(problem: PlainProblem, key: Array) -> Sites:
    """Unconstrained start on all data: `problem.initial`, with the sites in the plate small and one per particle."""
    x, local = problem.initial(key), local_sites(problem)
    for number, name in enumerate(local):
        shape = (problem.size, *x[name].shape[1:])
        x[name] = 0.1 * jax.random.normal(jax.random.fold_in(key, number), shape, x[name].dtype)
    return x


def values(problem: PlainProblem, x: Sites, data: Any) -> Sites:
    """What is kept of a point or draw.

    Of a family its shared values and the latents of the particles, of a model function all sites and deterministics.

    Args:
        problem: what the engine sees.
        x: unconstrained sites; discrete ones as they are, those that are not sites of the model are left out.
        data: the arguments of a plain function.
    """
    x = {name: value for name, value in x.items() if name in problem.sites}
    if not isinstance(problem, ParticleProblem):
        params = problem.constrained({name: x[name] for name in problem.parameters()})
        params |= {name: value for name, value in x.items() if is_discrete(problem, name)}
        model = handlers.seed(handlers.substitute(problem.model, data=params), jax.random.key(0))
        sampled = {name: value for name, value in x.items() if name not in params}
        return params | constrain_fn(model, (data,), {}, sampled, return_deterministic=True)
    local = set(local_sites(problem))
    if problem.family is not None:
        latents = {name: value for name, value in x.items() if name in local}
        return problem.constrained(latents) | problem.shared({n: v for n, v in x.items() if n not in local})
    found = problem.constrained(x)
    fixed = {name: value for name, value in found.items() if name not in local}
    with handlers.block():
        model = handlers.seed(handlers.substitute(problem.model, data=fixed), jax.random.key(0))
        trace = handlers.trace(model).get_trace(problem.example())
    named = {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "deterministic" and not any(f.name == PLATE for f in site["cond_indep_stack"])
    }
    return found | named | problem.shared(x)
