"""Stochastic variational inference: the evidence lower bound, climbed batch by batch over any model."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.families.protocol import Neural
from hetmodels.plain import PlainProblem, Sites
from hetmodels.selection import PoseTable
from hetmodels.tree import pytree
from inference.amortization import amortization_gap
from inference.conv_encoder import ConvEncoder
from inference.elbo import Annealing
from inference.encoder import Encoder
from inference.guides import MeanField, Table, TableState
from inference.importance import importance_gap
from inference.machine import Machine
from inference.natural import NaturalSteps
from inference.pose_table import at_candidates, candidates_report, first_candidates, searched
from inference.sites import ByGradients, compiled, refuse, settings, split_arrays

_FEWEST_STEPS, _FEWEST_PASSES = 2000, 20
_HELD_OUT_KEY = 17
_CUT, _CUTS = 0.2, 2
_COUNTS = ("rows_at_once", "samples", "patience", "draws", "proposals", "search_every")
_LOOKS = 8  # draws of the guide whose mean a search looks at


@pytree
class SVIState:
    """Where the ascent stands.

    Attributes:
        params: unconstrained parameters of model and guide, by site.
        optimiser: the optimiser's own state.
        table: numbers of q per particle, or None.
        steps: steps so far.
        objective: evidence lower bound per particle, summed over the batches of the pass.
        batches: batches in that sum.
        best: the parameters with the best bound on particles held out.
        best_value: that bound; minus infinity until there is one.
        waited: passes without a better one.
        rate: what is left of the learning rates after the cuts.
        poses: candidates of every particle's pose (`PoseTable`) where they are searched; else ().
    """

    params: Sites
    optimiser: Any
    table: Any
    steps: Array
    objective: Array
    batches: Array
    best: Sites
    best_value: Array
    waited: Array
    rate: Array
    poses: Any = ()


@dataclasses.dataclass(frozen=True, repr=False)
class SVI(ByGradients):
    """Ascent of the evidence lower bound over the parameters of the guide and of the model.

    The objective reported is the bound in nats per particle, relative to noise only as all log-likelihoods here,
    whatever the annealing. Latents that the family's structure integrates in closed form are; with a `Point` guide of
    the rest the bound is then the evidence.

    A guide of one's own is a function of what the model receives: the arguments by name, or a batch of images with
    `data.plate()` and `data.batch`. Latents inside the plate that it does not sample are left to `local`.

    Attributes:
        guide: of the shared sites: `Point`, `MeanField`, `LowRank`, a class of `numpyro.infer.autoguide`, or a
            function model -> guide.
        local: of the latents of each particle: a `Table`, an `Encoder` or a `ConvEncoder`; if none, an encoder where
            the density is a neural network, else a table.
        iterations: passes over the data; if none, 20 or as many as make 2000 steps.
        batch_size: particles per step; all of them if none.
        rows_at_once: particles of a step that go through the model at a time, their gradients being summed; if none,
            a neural field takes few, which is faster on CPUs and needs less memory, others take all.
        learning_rate: of Adam with a cosine decay; 0.02 if none.
        network_rate: likewise, of the weights of networks.
        optimiser: an optax transformation in place of both.
        annealing: of the latents' part of the bound.
        samples: draws of the guide per step.
        patience: of a network, passes without a better bound on the particles held out after which it goes back to the
            best and on with a fifth of the rates, and the third time stops; only with batches, and where the guide
            knows the latents of other particles too.
        draws: draws of the shared values taken from the fitted guide.
        proposals: draws per particle about its q by which the latents are integrated in the end.
        finish: steps of each particle's q by itself, in the end, from what an encoder gives; None for its word alone.
        search_every: passes between two searches of the poses, where they are unknown and the family is linear: the
            bound sums over the candidates of the last search (`Unknown.poses` per particle).
    """

    guide: Callable[..., Any] = MeanField()  # noqa: RUF009
    local: Table | Encoder | ConvEncoder | None = None
    iterations: int | None = None
    batch_size: int | None = 32
    rows_at_once: int | None = None
    learning_rate: float | None = None
    network_rate: float = 1e-3
    optimiser: optax.GradientTransformation | None = None
    annealing: Annealing = Annealing()  # noqa: RUF009
    samples: int = 1
    patience: int | None = 5
    draws: int = 100
    proposals: int = 32
    finish: NaturalSteps | None = NaturalSteps()  # noqa: RUF009
    search_every: int = 2

    sums_poses = True

    def __post_init__(self) -> None:
        self._check()
        counts = {n: getattr(self, n) for n in _COUNTS}
        wrong = {name: value for name, value in counts.items() if value is not None and value < 1}
        if wrong:
            raise ValueError(f"SVI: {', '.join(wrong)} must be at least 1, got {', '.join(map(str, wrong.values()))}.")
        if not self.network_rate > 0:
            raise ValueError(f"SVI: the network_rate must be positive, got {self.network_rate}.")

    __repr__ = settings

    @classmethod
    def lacks(cls, model: Any) -> str | None:
        """Nothing: every model with continuous or integrated latents."""
        return None

    def passes(self, problem: PlainProblem) -> int:
        """Passes over the data."""
        if self.iterations is not None:
            return self.iterations
        return max(_FEWEST_PASSES, math.ceil(_FEWEST_STEPS / self.steps_per_pass(problem)))

    def init(self, key: Array, problem: PlainProblem) -> SVIState:
        """The guide about known starting values, else about the prior's median, set up eagerly on one batch.

        Raises:
            UsageError: if sites are discrete.
        """
        refuse(problem, "svi")
        rows = math.ceil(problem.size / self.steps_per_pass(problem))
        batch = problem.whole() if self.whole else next(iter(problem.batches(0, key, rows, False)))
        poses = first_candidates(jax.random.fold_in(key, 2), problem)
        batch = at_candidates(poses, batch)
        machine = Machine(problem, self.guide, self.local or _local(problem), batch, key)
        compiled(problem, self, lambda: (machine, self._compiled_step(problem, machine, batch)))
        key_table = jax.random.fold_in(key, 1)
        table = None
        if machine.tabled:
            table = TableState.begin(key_table, machine.law, problem.size, machine.latents.dims)
        zero, none = jnp.zeros(()), jnp.zeros((), jnp.int32)
        begin = machine.first
        optimiser = self._optimiser(problem).init(begin)
        return SVIState(begin, optimiser, table, none, zero, none, begin, zero - jnp.inf, none, zero + 1, poses)

    def step(self, key: Array, problem: PlainProblem, state: SVIState, batch: Any) -> tuple[SVIState, dict[str, Any]]:
        """One step on a batch."""
        machine, update = self._machine(problem)
        arrays, _ = split_arrays(at_candidates(state.poses, batch))
        index = machine.rows(batch) if machine.tabled else None
        moving = state.params, state.optimiser, state.steps, state.objective, state.batches
        moving, table = update(state.table, moving, index, arrays, state.rate, key)
        names = ("params", "optimiser", "steps", "objective", "batches")
        return dataclasses.replace(state, table=table, **dict(zip(names, moving, strict=True))), {}

    def sweep(self, key: Array, problem: PlainProblem, state: SVIState) -> tuple[SVIState, dict[str, Any]]:
        """Report the mean bound of the pass, and that of particles held out; keep the best."""
        state, mean = self.began(state)
        machine, _ = self._machine(problem)
        state = self._searched(key, problem, state, machine)
        info: dict[str, Any] = {"objective": mean} | candidates_report(problem, state.poses)
        if self.whole or self.patience is None or not machine.network or machine.tabled:
            return state, info
        value = machine.held_out(state.params, jax.random.key(_HELD_OUT_KEY))
        if value is None:
            return state, info
        info["held_out"] = value
        passes = int(state.steps) / self.steps_per_pass(problem)
        if value > float(state.best_value) or passes <= self.annealing.passes:
            none = jnp.zeros((), jnp.int32)
            return dataclasses.replace(state, best=state.params, best_value=jnp.asarray(value), waited=none), info
        waited = state.waited + 1
        if int(waited) < self.patience or self._cut(state):
            return dataclasses.replace(state, waited=waited), info
        none = jnp.zeros((), jnp.int32)
        return dataclasses.replace(state, params=state.best, rate=_CUT * state.rate, waited=none), info

    def _cut(self, state: SVIState) -> bool:
        """Whether the learning rates have been cut for the last time."""
        return float(state.rate) < 1.5 * _CUT**_CUTS

    def _searched(self, key: Array, problem: Any, state: SVIState, machine: Machine) -> SVIState:
        """With the candidates of a new search, where one is due."""
        passes = round(int(state.steps) / self.steps_per_pass(problem))
        if not isinstance(state.poses, PoseTable) or passes % self.search_every or passes >= self.passes(problem):
            return state
        drawn = machine.draws(state.params, jax.random.split(key, 1 if machine.point else _LOOKS))
        mean = {name: value.mean(0) for name, value in drawn.items()}
        return dataclasses.replace(state, poses=searched(key, problem, state.poses, mean))

    def finished(self, state: SVIState) -> bool:
        """Whether the bound of the particles held out has stopped rising, at the lowest rates too."""
        return self.patience is not None and int(state.waited) >= self.patience and self._cut(state)

    def draw(self, key: Array, problem: PlainProblem, state: SVIState) -> Sites:
        """One draw of the guide."""
        machine, _ = self._machine(problem)
        return {name: value[0] for name, value in machine.draws(_kept(state), key[None]).items()}

    def sample(self, key: Array, problem: PlainProblem, state: SVIState) -> Sites:
        """Draws of the guide, (1, draws, …); {} where it is a point."""
        machine, _ = self._machine(problem)
        if machine.point:
            return {}
        drawn = machine.draws(_kept(state), jax.random.split(key, self.draws))
        if self.draws > 1 and all(bool(jnp.all(value == value[:1])) for value in drawn.values()):
            return {}
        return {name: value[None] for name, value in drawn.items()}

    def proposal(self, problem: PlainProblem, state: SVIState) -> Callable[[Any], Any] | None:
        """Centre and precision of q of a batch's latents, for `Problem.infer`; None where q has no width."""
        machine, _ = self._machine(problem)
        return machine.proposal(_kept(state), state.table, self.finish)

    def extra(self, problem: PlainProblem, state: SVIState) -> dict[str, np.ndarray]:
        """What q of some particles misses [nats]: `importance_gap`, and of an encoder's `amortization_gap`.

        See `inference.importance` and `inference.amortization`; both of what was trained, before `finish`.
        """
        machine, _ = self._machine(problem)
        latents, params = machine.latents, _kept(state)
        if latents is None or machine.law.precision(machine.law.first(latents.dims), latents.dims) is None:
            return {}
        found = {"importance_gap": importance_gap(machine, params, state.table, self.rows_at_once)}
        if machine.tabled:
            return found
        return found | {"amortization_gap": amortization_gap(machine, params, self.rows_at_once)}

    def _machine(self, problem: PlainProblem) -> tuple[Machine, Callable]:
        return compiled(problem, self, lambda: None)

    def _optimiser(self, problem: PlainProblem) -> optax.GradientTransformation:
        if self.optimiser is not None:
            return self.optimiser
        family = getattr(problem, "family", None)
        own = family.weights() if isinstance(family, Neural) else ()

        def adam(rate: float) -> optax.GradientTransformation:
            return optax.adam(lambda count: rate * self._decay(problem, count))

        def kinds(params: Sites) -> dict[str, str]:
            return {n: "network" if n in own or n.startswith("encoder_") else "other" for n in params}

        rate = 0.02 if self.learning_rate is None else self.learning_rate
        return optax.partition({"network": adam(self.network_rate), "other": adam(rate)}, kinds)

    def _decay(self, problem: PlainProblem, steps: Array) -> Array:
        total = self.passes(problem) * self.steps_per_pass(problem)
        share = jnp.clip(steps / total, 0.0, 1.0)
        return 0.01 + 0.99 * 0.5 * (1 + jnp.cos(jnp.pi * share))

    def _compiled_step(self, problem: PlainProblem, machine: Machine, batch: Any) -> Callable:
        _, join = split_arrays(batch)
        transformation, per_pass = self._optimiser(problem), self.steps_per_pass(problem)
        parts = machine.parts(batch, self.rows_at_once)
        rate = self.local.rate if isinstance(self.local, Table) else Table().rate

        def update(
            table: TableState | None, moving: tuple, index: Array | None, arrays: list[Array], left: Array, key: Array
        ) -> tuple[tuple, TableState | None]:
            params, optimiser, steps, objective, batches = moving
            beta = self.annealing.beta(steps / per_pass)
            numbers = None if table is None else table.value[index]
            share = _share(join(arrays))

            def loss(params: Sites, numbers: Array | None, arrays: list[Array], key: Array) -> tuple[Array, Array]:
                keys, count = jax.random.split(key, self.samples), parts * self.samples * problem.size
                drawn = [machine.bound(params, numbers, join(arrays), one, share) for one in keys]
                local, rest = (sum(part) / count for part in zip(*drawn, strict=True))
                return -(beta * local + rest), local + rest

            slopes = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
            elbo, slope, row_slope = _summed(slopes, params, numbers, arrays, key, parts)
            move, optimiser = transformation.update(slope, optimiser, params)
            move = jax.tree.map(lambda step: left * step, move)
            if table is not None and index is not None and row_slope is not None:
                table = table.stepped(index, row_slope, rate * self._decay(problem, steps))
            return (optax.apply_updates(params, move), optimiser, steps + 1, objective + elbo, batches + 1), table

        return jax.jit(update, donate_argnums=0)


def _share(data: Any) -> Array | None:
    """Share of real rows in a batch of particles."""
    return jnp.mean(data.weight) if isinstance(data, Batch) else None


def _summed(
    slopes: Callable, params: Sites, numbers: Array | None, arrays: list[Array], key: Array, parts: int
) -> tuple[Array, Sites, Array | None]:
    """Bound and gradients of the parts of a batch, one after the other: sums, and the rows' own put together."""
    if parts == 1:
        (_, elbo), (slope, row_slope) = slopes(params, numbers, arrays, key)
        return elbo, slope, row_slope

    def one(carry: tuple[Array, Sites], part: tuple) -> tuple[tuple[Array, Sites], Array | None]:
        (_, elbo), (slope, row_slope) = slopes(params, *part)
        return jax.tree.map(jnp.add, carry, (elbo, slope)), row_slope

    cut = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), (numbers, arrays))
    begin = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    (elbo, slope), row_slope = jax.lax.scan(one, begin, (*cut, jax.random.split(key, parts)))
    return elbo, slope, None if numbers is None else row_slope.reshape(numbers.shape)


def _local(problem: PlainProblem) -> Table | Encoder | ConvEncoder:
    return Encoder() if isinstance(getattr(problem, "family", None), Neural) else Table()


def _kept(state: SVIState) -> Sites:
    """The best parameters where particles were held out, else the last."""
    return state.best if np.isfinite(state.best_value) else state.params
