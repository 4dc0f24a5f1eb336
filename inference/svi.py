"""Stochastic variational inference: NumPyro's SVI, its guides and optax's optimisers, through the one loop."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.infer
import optax
from jax import Array
from numpyro import handlers
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.initialization import init_to_median, init_to_value

from hetmodels.data.batch import Batch
from hetmodels.model import Observed
from hetmodels.plain import PlainProblem, Sites
from hetmodels.problem import ParticleProblem
from hetmodels.tree import pytree
from inference.sites import PLATE, Rows, compiled, local_sites, refuse, settings, split_arrays, values


@pytree
class SVIState:
    """Where the ascent of the ELBO stands.

    Attributes:
        inner: NumPyro's state: the optimiser with the parameters of guide and model, and the random key.
        elbo: ELBO per particle, summed over the batches of the pass.
        batches: batches in that sum.
    """

    inner: Any
    elbo: Array
    batches: Array


@dataclasses.dataclass(frozen=True, repr=False)
class SVI:
    """Ascent of the evidence lower bound over the guide's and the model's parameters.

    A guide of one's own is a function of what the model receives: the arguments by name, or a batch of images with
    `data.plate()` and `data.batch`. Latents inside the plate that the guide keeps in a table (AutoNormal, AutoDelta)
    have one row per particle: for small sets.

    Attributes:
        guide: makes the guide of a model: a class of `numpyro.infer.autoguide`, or a function model -> guide.
        iterations: steps, rounded up to whole passes over the data.
        batch_size: particles per step; all of them if none.
        learning_rate: of Adam with a cosine decay; 0.02 if none.
        optimiser: an optax transformation in place of that.
        loss: the objective, one of NumPyro's ELBOs.
        draws: draws of the shared values taken from the fitted guide.
    """

    guide: Callable[..., Any] = AutoNormal
    iterations: int = 2000
    batch_size: int | None = None
    learning_rate: float | None = None
    optimiser: optax.GradientTransformation | None = None
    loss: Any = Trace_ELBO()  # noqa: RUF009
    draws: int = 100

    def __post_init__(self) -> None:
        if min(self.iterations, self.draws, self.batch_size or 1) < 1:
            raise ValueError(f"SVI: iterations, draws and batch_size must be at least 1, got {self!r}.")
        if self.optimiser is not None and self.learning_rate is not None:
            raise ValueError("SVI: the optimiser brings its own learning rate; give one of the two.")

    __repr__ = settings

    @property
    def whole(self) -> bool:
        """Whether a step sees all data."""
        return self.batch_size is None

    @property
    def shuffle(self) -> bool:
        """Batches are drawn anew in each pass."""
        return not self.whole

    @classmethod
    def lacks(cls, model: Any) -> str | None:
        """Nothing: every model with continuous or integrated latents."""
        return None

    def passes(self, problem: PlainProblem) -> int:
        """As many as the steps need."""
        return math.ceil(self.iterations / self._per_pass(problem))

    def init(self, key: Array, problem: PlainProblem) -> SVIState:
        """The guide about known starting values, else about the prior's median, set up eagerly on one batch.

        Raises:
            UsageError: if sites are discrete.
        """
        refuse(problem, "svi")
        rows = math.ceil(problem.size / self._per_pass(problem))
        batch = problem.whole() if self.whole else next(iter(problem.batches(0, key, rows, False)))
        at, params = problem.start_sites(), set(problem.parameters())
        machine = _Machine(problem, self.guide, at, self._optimiser(problem), self.loss, batch)
        compiled(problem, self, lambda: machine)
        begin = {name: value for name, value in at.items() if name in params}
        inner = machine.run(machine.svi.init, _indices(problem, batch), batch, key, init_params=begin)
        return SVIState(inner, jnp.zeros(()), jnp.zeros((), jnp.int32))

    def step(self, key: Array, problem: PlainProblem, state: SVIState, batch: Any) -> tuple[SVIState, dict[str, Any]]:
        """One step on a batch."""
        if isinstance(batch, Batch) and len(batch.weight) == problem.size:
            batch = jax.tree.map(lambda leaf: leaf[np.argsort(np.asarray(batch.index))], batch)
        arrays, _ = split_arrays(batch)
        return self._machine(problem).update(state, _indices(problem, batch), arrays), {}

    def sweep(self, key: Array, problem: PlainProblem, state: SVIState) -> tuple[SVIState, dict[str, Any]]:
        """Report the mean ELBO of the pass, and begin the next."""
        mean = float(state.elbo) / int(state.batches)
        return dataclasses.replace(state, elbo=jnp.zeros(()), batches=jnp.zeros((), jnp.int32)), {"objective": mean}

    def draw(self, key: Array, problem: PlainProblem, state: SVIState) -> Sites:
        """One draw of the guide."""
        return {name: value[0] for name, value in self._machine(problem).draws(state.inner, key[None]).items()}

    def sample(self, key: Array, problem: PlainProblem, state: SVIState) -> Sites:
        """Draws of the guide, (1, draws, …); {} where it is a point."""
        drawn = self._machine(problem).draws(state.inner, jax.random.split(key, self.draws))
        if self.draws > 1 and all(bool(jnp.all(value == value[:1])) for value in drawn.values()):
            return {}
        return {name: value[None] for name, value in drawn.items()}

    def _machine(self, problem: PlainProblem) -> "_Machine":
        return compiled(problem, self, lambda: None)

    def _per_pass(self, problem: PlainProblem) -> int:
        return 1 if self.batch_size is None else math.ceil(problem.size / self.batch_size)

    def _optimiser(self, problem: PlainProblem) -> optax.GradientTransformation:
        if self.optimiser is not None:
            return self.optimiser
        total = self.passes(problem) * self._per_pass(problem)
        rate = 0.02 if self.learning_rate is None else self.learning_rate
        return optax.adam(optax.cosine_decay_schedule(rate, total, 1e-2))


class _Machine:
    """NumPyro's SVI on a problem, compiled once."""

    def __init__(
        self, problem: PlainProblem, factory: Callable, at: Sites, optimiser: Any, loss: Any, batch: Any
    ) -> None:
        self.problem = problem
        takes = inspect.signature(factory).parameters
        options = {"init_loc_fn": partial(_start_at, known=at)} if "init_loc_fn" in takes else {}
        self.guide = factory(self._model, **options)
        self.svi = numpyro.infer.SVI(self._model, self.guide, optimiser, loss)
        _, join = split_arrays(batch)

        def update(state: SVIState, rows: Array | None, arrays: list[Array]) -> SVIState:
            inner, loss = self.run(self.svi.update, rows, join(arrays), state.inner)
            return SVIState(inner, state.elbo - loss / problem.size, state.batches + 1)

        self.update = jax.jit(update)
        self.draws = jax.jit(lambda inner, keys: jax.lax.map(lambda key: self._draw(inner, key), keys))

    def _model(self, *args: Any, **kwargs: Any) -> None:
        given = self.problem.given
        with handlers.block(hide_fn=lambda site: site["type"] == "param" and site["name"] in given):
            self.problem.model(args[0].batch if args else kwargs)

    def _seen(self, batch: Any) -> tuple[tuple, dict[str, Any]]:
        """What model and guide receive."""
        if not isinstance(self.problem, ParticleProblem):
            return (), batch
        obs = self.problem.observation
        return (Observed(batch, obs, jnp.ones((obs.groups, obs.disc.shells)), None),), {}

    def run(self, call: Callable, rows: Array | None, batch: Any, *before: Any, **options: Any) -> Any:
        """Call NumPyro on a batch whose rows of the plate are these."""
        args, kwargs = self._seen(batch)
        with Rows(batch), handlers.substitute(data={} if rows is None else {PLATE: rows}):
            return call(*before, *args, **kwargs, **options)

    def _trace(self, inner: Any, key: Array) -> dict[str, Any]:
        params = self.svi.get_params(inner)
        args, kwargs = self._seen(self.problem.example())
        with handlers.block():
            guide = handlers.seed(handlers.substitute(self.guide, data=params), key)
            return handlers.trace(guide).get_trace(*args, **kwargs)

    def _draw(self, inner: Any, key: Array) -> Sites:
        """Shared values at one draw of the guide."""
        problem, local = self.problem, set(local_sites(self.problem))
        trace = self._trace(inner, key)
        found = {
            name: site["value"] for name, site in trace.items() if site["type"] == "sample" and name in problem.sites
        }
        x = problem.unconstrained({name: value for name, value in found.items() if name not in local})
        params = self.svi.optim.get_params(inner.optim_state)
        x |= {name: params[name] for name in problem.parameters()}
        return values(problem, x, problem.data)


def _start_at(site: Any, known: Sites) -> Any:
    """Initial value of a site: the known one, else about the median of its prior."""
    return init_to_value(site, values=known) if site["name"] in known else init_to_median(site)


def _indices(problem: PlainProblem, batch: Any) -> Array | None:
    """Rows of the plate that a batch holds: numbers among the training particles."""
    if not isinstance(batch, Batch) or len(batch.weight) == problem.size:
        return None
    return jnp.asarray(np.searchsorted(problem.training, np.asarray(batch.index)), jnp.int32)  # type: ignore[attr-defined]
