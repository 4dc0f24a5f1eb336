"""Stochastic gradient Markov chain Monte Carlo: approximate draws for data too many for a full gradient per step."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.errors import DataError
from hetmodels.plain import PlainProblem, Sites
from hetmodels.tree import pytree
from inference.engine import run
from inference.map import MAP
from inference.sites import Batched, Rows, compiled, need_given, refuse, settings, split_arrays, values

_PROBES = 16
Gradient = Callable[[Sites, Any], Sites]


class Dynamics(Protocol):
    """A step of stochastic gradient dynamics."""

    def move(self, key: Array, x: Sites, gradient: Gradient, batch: Any, step_size: float) -> Sites:
        """One step of one chain on a batch."""


@dataclasses.dataclass(frozen=True)
class SGLD:
    """Stochastic gradient Langevin dynamics (Welling and Teh 2011, ICML), by BlackJAX."""

    def move(self, key: Array, x: Sites, gradient: Gradient, batch: Any, step_size: float) -> Sites:
        """See `Dynamics.move`."""
        import blackjax  # which starts JAX's devices

        return blackjax.sgld.build_kernel()(key, x, gradient, batch, step_size)


@dataclasses.dataclass(frozen=True)
class SGHMC:
    """Stochastic gradient Hamiltonian Monte Carlo with friction (Chen, Fox and Guestrin 2014, ICML), by BlackJAX.

    Its integrator is of first order: the bias is of the order of step size over friction.

    Attributes:
        steps: steps of the dynamics on a batch, after which the momentum is drawn anew.
        friction: of the dynamics, which takes up the noise of the gradients.
    """

    steps: int = 20
    friction: float = 1.0

    def move(self, key: Array, x: Sites, gradient: Gradient, batch: Any, step_size: float) -> Sites:
        """See `Dynamics.move`."""
        import blackjax

        return blackjax.sghmc.build_kernel(self.friction)(key, x, gradient, batch, step_size, self.steps)


@pytree
class SGMCMCState:
    """Where the chains stand.

    Attributes:
        mode: unconstrained sites of the mode, about which the gradients' noise cancels.
        slope: gradient of the log density there on all data.
        scale: posterior standard deviations expected from the curvature there.
        x: sites about the mode in these units, (chains, …).
        kept: draws of this pass, (chains, room, …).
        filled: how many.
        done: steps so far.
    """

    mode: Sites
    slope: Sites
    scale: Sites
    x: Sites
    kept: Sites
    filled: np.ndarray
    done: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class SGMCMC(Batched):
    """Chains on mini-batches from the mode, with control variates (Baker et al. 2019, Stat. Comput. 29).

    The gradient on a batch is taken relative to that at the mode, so that near it batches hardly differ; numbers are
    counted in posterior standard deviations expected from the curvature at the mode. The draws have a bias of the order
    of the step size: compare a small set with NUTS before relying on the spread. Models with latents of particles that
    do not integrate are refused.

    Attributes:
        dynamics: `SGLD()` or `SGHMC()`.
        draws: draws of each chain that are kept.
        warmup: steps before.
        thinning: steps between draws.
        chains: number of chains, side by side on the same batches.
        step_size: of the dynamics; in units of posterior variances (SGLD) or standard deviations (SGHMC).
        batch_size: particles per step; all of them if none.
        mode: finds the mode, on a problem that does not start from one.
    """

    dynamics: Any = SGLD()  # noqa: RUF009
    draws: int = 500
    warmup: int = 500
    thinning: int = 10
    chains: int = 4
    step_size: float = 0.05
    batch_size: int | None = None
    mode: MAP = MAP()  # noqa: RUF009

    def __post_init__(self) -> None:
        if min(self.draws, self.chains, self.thinning, self.batch_size or 1) < 1 or self.warmup < 0:
            raise ValueError(f"SGMCMC: draws, chains, thinning and batch_size must be at least 1, got {self!r}.")
        if not 0 < self.step_size < 1:
            raise ValueError(f"SGMCMC: step_size must lie between 0 and 1, got {self.step_size}.")

    __repr__ = settings

    @classmethod
    def lacks(cls, model: Any) -> str | None:
        """As the mode."""
        reason = MAP.lacks(model)
        return None if reason is None else reason.replace("map needs", "sgmcmc needs", 1)

    def passes(self, problem: PlainProblem) -> int:
        """As many as the steps need."""
        return math.ceil((self.warmup + self.draws * self.thinning) / self._per_pass(problem))

    def init(self, key: Array, problem: PlainProblem) -> SGMCMCState:
        """Find the mode, its slope and its curvature, and start the chains there.

        Raises:
            UsageError: if sites are discrete, latents of particles are left, or `param` sites have no given value.
        """
        refuse(problem, "sgmcmc", locals_too=True)
        need_given(problem, "sgmcmc")
        key_mode, key_probe, key_start = jax.random.split(key, 3)
        mode = run(self.mode, problem, key=key_mode).state.x
        gradient, probe, _, _ = self._compiled(problem)
        rows = math.ceil(problem.size / self._per_pass(problem))
        slope = jax.tree.map(jnp.zeros_like, mode)
        curvature, parts = slope, 0
        for batch in [problem.whole()] if self.whole else problem.batches(0, key, rows, False):
            arrays, parts = split_arrays(batch)[0], parts + 1
            slope = jax.tree.map(jnp.add, slope, gradient(mode, arrays))
            curvature = jax.tree.map(jnp.add, curvature, probe(key_probe, mode, arrays))
        slope, curvature = jax.tree.map(lambda total: total / parts, (slope, curvature))
        scale = jax.tree.map(lambda c: 1 / jnp.sqrt(jnp.maximum(c, 1e-8)), curvature)
        x = {
            name: jax.random.normal(jax.random.fold_in(key_start, i), (self.chains, *value.shape))
            for i, (name, value) in enumerate(mode.items())
        }
        room = math.ceil(self._per_pass(problem) / self.thinning)
        kept = {name: jnp.zeros((self.chains, room, *value.shape)) for name, value in mode.items()}
        return SGMCMCState(mode, slope, scale, x, kept, np.asarray(0), np.asarray(0))

    def step(
        self, key: Array, problem: PlainProblem, state: SGMCMCState, batch: Any
    ) -> tuple[SGMCMCState, dict[str, Any]]:
        """One step of all chains on a batch.

        Raises:
            DataError: if a chain has left the range of numbers.
        """
        _, _, move, _ = self._compiled(problem)
        x = move(
            jax.random.split(key, self.chains), (state.mode, state.slope, state.scale), state.x, split_arrays(batch)[0]
        )
        done = int(state.done)
        filled = 0 if done % self._per_pass(problem) == 0 else int(state.filled)
        after, kept = done + 1 - self.warmup, state.kept
        if after > 0 and after % self.thinning == 0 and after // self.thinning <= self.draws:
            kept = {name: value.at[:, filled].set(x[name]) for name, value in kept.items()}
            filled += 1
            if not all(bool(jnp.isfinite(value).all()) for value in x.values()):
                raise DataError("sgmcmc: a chain has diverged; lower step_size, or raise batch_size.")
        state = dataclasses.replace(state, x=x, kept=kept, filled=np.asarray(filled), done=np.asarray(done + 1))
        return state, {}

    def sweep(self, key: Array, problem: PlainProblem, state: SGMCMCState) -> tuple[SGMCMCState, dict[str, Any]]:
        """Report how far the chains are from the mode, in standard deviations: 1 is expected."""
        square = np.concatenate([np.asarray(value**2).ravel() for value in state.x.values()])
        return state, {"distance": float(np.sqrt(square.mean())), "steps": int(state.done)}

    def kept(self, problem: PlainProblem, state: SGMCMCState) -> tuple[Sites, dict[str, Any]]:
        """The draws of the last pass."""
        count = int(state.filled)
        if not count:
            return {}, {}
        _, _, _, convert = self._compiled(problem)
        flat = {name: v[:, :count].reshape(-1, *v.shape[2:]) for name, v in self._placed(state, state.kept, 2).items()}
        draws = convert(flat, split_arrays(problem.whole())[0])
        found = {name: v.reshape(self.chains, count, *v.shape[1:]) for name, v in draws.items()}
        return found, {"step_size": jnp.full((self.chains, count), self.step_size)}

    def draw(self, key: Array, problem: PlainProblem, state: SGMCMCState) -> Sites:
        """Where the first chain stands."""
        return values(problem, {n: v[0] for n, v in self._placed(state, state.x, 1).items()}, problem.data)

    def _placed(self, state: SGMCMCState, x: Sites, lead: int) -> Sites:
        """Unconstrained sites from those about the mode."""
        wide = (None,) * lead
        return {name: state.mode[name][wide] + state.scale[name][wide] * value for name, value in x.items()}

    def _per_pass(self, problem: PlainProblem) -> int:
        return 1 if self.batch_size is None else math.ceil(problem.size / self.batch_size)

    def _compiled(self, problem: PlainProblem) -> tuple[Callable, ...]:
        return compiled(problem, self, lambda: _compile(self, problem))


def _compile(engine: SGMCMC, problem: PlainProblem) -> tuple[Callable, ...]:
    """Compiled: gradient on a batch; its curvature's diagonal; a step of all chains; points to what is kept."""
    _, join = split_arrays(problem.example())

    def gradient(x: Sites, batch: Any) -> Sites:
        with Rows(batch):
            return jax.grad(lambda x: problem.log_density(x, batch))(x)

    def probe(key: Array, x: Sites, arrays: list[Array]) -> Sites:
        """Diagonal of minus the Hessian from products with random signs (Bekas, Kokiopoulou and Saad 2007)."""
        batch = join(arrays)

        def one(key: Array) -> Sites:
            signs = {
                name: jax.random.rademacher(jax.random.fold_in(key, i), v.shape, v.dtype)
                for i, (name, v) in enumerate(x.items())
            }
            bent = jax.jvp(lambda x: gradient(x, batch), (x,), (signs,))[1]
            return jax.tree.map(lambda s, b: -s * b, signs, bent)

        return jax.tree.map(lambda v: v.mean(0), jax.lax.map(one, jax.random.split(key, _PROBES)))

    def move(keys: Array, frame: tuple[Sites, Sites, Sites], x: Sites, arrays: list[Array]) -> Sites:
        (mode, slope, scale), batch = frame, join(arrays)
        at_mode = gradient(mode, batch)

        def relative(u: Sites, batch: Any) -> Sites:
            at = {name: mode[name] + scale[name] * v for name, v in u.items()}
            here = gradient(at, batch)
            return {name: scale[name] * (slope[name] + here[name] - at_mode[name]) for name in u}

        one = lambda key, u: engine.dynamics.move(key, u, relative, batch, engine.step_size)  # noqa: E731
        return jax.vmap(one)(keys, x)

    convert = jax.jit(lambda x, arrays: jax.lax.map(lambda one: values(problem, one, _whole(problem, arrays)), x))
    return jax.jit(lambda x, arrays: gradient(x, join(arrays))), jax.jit(probe), jax.jit(move), convert


def _whole(problem: PlainProblem, arrays: list[Array]) -> Any:
    return split_arrays(problem.whole())[1](arrays)
