"""The mode of the log posterior over shared values, by gradients: for any model whose local latents are integrated."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from hetmodels.errors import UsageError
from hetmodels.plain import PlainProblem, Sites
from hetmodels.selection import PoseTable
from hetmodels.tree import pytree
from inference.pose_table import at_candidates, candidates_report, first_candidates, searched
from inference.sites import ByGradients, Rows, compiled, latent_free, refuse, settings, split_arrays, values


@pytree
class MAPState:
    """Where the ascent stands.

    Attributes:
        x: unconstrained sites.
        optimiser: the optimiser's own state.
        objective: log density per particle, summed over the batches of the pass.
        batches: batches in that sum.
        promise: rise of the log density that the last step promised to first order, nats.
        poses: candidates of every particle's pose (`PoseTable`) where they are searched; else ().
        passes: passes so far.
    """

    x: Sites
    optimiser: Any
    objective: Array
    batches: Array
    promise: Array
    poses: Any = ()
    passes: Any = 0


@dataclasses.dataclass(frozen=True, repr=False)
class MAP(ByGradients):
    """Gradient ascent on log p(data, x) over sample and param sites, with NumPyro's densities and optax's steps.

    The spectrum of a map's prior (sites `…_tau2`) is kept at its start: jointly with the map that it scales it has no
    mode. Estimate it with em, moments or svi and pass it on as `given`.

    Attributes:
        iterations: steps at most, rounded up to whole passes over the data.
        batch_size: particles per step; all of them if none.
        learning_rate: of Adam with a cosine decay; if none, 0.1 with batches, and L-BFGS on all data.
        optimiser: an optax transformation in place of these.
        tolerance: L-BFGS stops when a step promises to raise the log density by less than this many nats.
        search_every: passes between two searches of the poses, where they are unknown and the family is linear: the
            density sums over the candidates of the last search (`Unknown.poses` per particle).
    """

    iterations: int = 300
    batch_size: int | None = None
    learning_rate: float | None = None
    optimiser: optax.GradientTransformation | None = None
    tolerance: float = 1e-4
    search_every: int = 10

    sums_poses = True

    def __post_init__(self) -> None:
        self._check()

    __repr__ = settings

    @property
    def _newton(self) -> bool:
        return self.whole and self.learning_rate is None and self.optimiser is None

    @classmethod
    def lacks(cls, model: Any) -> str | None:
        """MAP needs the latents of the particles integrated in closed form, or none."""
        if not hasattr(model, "conformation") or latent_free(model) is not False:
            return None
        name = getattr(model, "__name__", type(model).__name__)
        return (
            "map needs a family whose latents integrate in closed form (protocol Gridded or Gaussian), or that has "
            f"none; those of {name} do not."
        )

    def passes(self, problem: PlainProblem) -> int:
        """As many as the steps need."""
        return math.ceil(self.iterations / self.steps_per_pass(problem))

    def init(self, key: Array, problem: PlainProblem) -> MAPState:
        """Start at `problem.initial`.

        Raises:
            UsageError: if sites are discrete, or latents of the particles are left to integrate.
        """
        refuse(problem, "map", locals_too=True)
        x = {name: value for name, value in problem.initial(key).items() if name not in _kept(problem)}
        if not x:
            raise UsageError("map: there is nothing to estimate, every site is given.")
        x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), x)
        zero, none = jnp.zeros(()), jnp.zeros((), jnp.int32)
        poses = first_candidates(jax.random.fold_in(key, 2), problem)
        return MAPState(x, self._transformation(problem).init(x), zero, none, zero + jnp.inf, poses, np.asarray(0))

    def step(self, key: Array, problem: PlainProblem, state: MAPState, batch: Any) -> tuple[MAPState, dict[str, Any]]:
        """One step of the optimiser on a batch."""
        arrays, join = split_arrays(at_candidates(state.poses, batch))
        update = compiled(problem, self, lambda: jax.jit(self._update(problem, join)))
        moved = update(dataclasses.replace(state, poses=(), passes=()), arrays)
        return dataclasses.replace(moved, poses=state.poses, passes=state.passes), {}

    def sweep(self, key: Array, problem: PlainProblem, state: MAPState) -> tuple[MAPState, dict[str, Any]]:
        """Report the mean objective of the pass, and begin the next."""
        state, mean = self.began(state)
        state = dataclasses.replace(state, passes=np.asarray(int(state.passes) + 1))
        info = {"objective": mean, "promise": float(state.promise)}
        due = int(state.passes) % self.search_every == 0 and int(state.passes) < self.passes(problem)
        if isinstance(state.poses, PoseTable) and due:
            poses = searched(key, problem, state.poses, self.draw(key, problem, state))
            state = dataclasses.replace(state, poses=poses)
        return state, info | candidates_report(problem, state.poses)

    def finished(self, state: MAPState) -> bool:
        """Whether nothing is left to gain, poses having been searched anew at least once."""
        waits = isinstance(state.poses, PoseTable) and int(state.passes) <= self.search_every
        return self._newton and float(state.promise) < self.tolerance and not waits

    def draw(self, key: Array, problem: PlainProblem, state: MAPState) -> Sites:
        """The mode."""
        return values(problem, _complete(problem, state.x), problem.data)

    def _transformation(self, problem: PlainProblem) -> optax.GradientTransformationExtraArgs:
        if self.optimiser is not None:
            return optax.with_extra_args_support(self.optimiser)
        if self._newton:
            return optax.lbfgs()
        total = self.passes(problem) * self.steps_per_pass(problem)
        rate = 0.1 if self.learning_rate is None else self.learning_rate
        return optax.with_extra_args_support(optax.adam(optax.cosine_decay_schedule(rate, total, 1e-3)))

    def _update(self, problem: PlainProblem, join: Any) -> Any:
        transformation = self._transformation(problem)

        def update(state: MAPState, arrays: list[Array]) -> MAPState:
            batch = join(arrays)

            def loss(x: Sites) -> Array:
                with Rows(batch):
                    return -problem.log_density(_complete(problem, x), batch, jacobian=False) / problem.size

            value, gradient = jax.value_and_grad(loss)(state.x)
            steps, optimiser = transformation.update(
                gradient, state.optimiser, state.x, value=value, grad=gradient, value_fn=loss
            )
            promise = -optax.tree_utils.tree_vdot(gradient, steps)
            x = optax.apply_updates(state.x, steps)
            return MAPState(x, optimiser, state.objective - value, state.batches + 1, promise * problem.size, (), ())

        return update


def _kept(problem: PlainProblem) -> dict[str, dict[str, Any]]:
    """Prior spectra, which stay at their start: name -> site."""
    return {n: s for n, s in problem.sites.items() if s["type"] == "param" and n.endswith("_tau2")}


def _complete(problem: PlainProblem, x: Sites) -> Sites:
    """All unconstrained sites: the estimated ones and the spectra at their start."""
    known = problem.start_sites()
    kept = {name: known.get(name, site["value"]) for name, site in _kept(problem).items()}
    return problem.unconstrained(kept) | x
