"""Tempered sequential Monte Carlo: a population of points is led from a density one can draw from to the posterior."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer.util import constrain_fn, potential_energy, unconstrain_fn
from numpyro.primitives import Messenger

from hetmodels.errors import DataError, UsageError
from hetmodels.plain import PlainProblem, Sites
from hetmodels.tree import pytree
from inference.sites import compiled, need_given, refuse, settings, split_arrays, values

_ACCEPTANCE = 0.8
_RATE = 2.0


@pytree
class SMCState:
    """Where the populations stand; all fields lead with the chains.

    Attributes:
        keys: random keys.
        inner: BlackJAX's state: points, weights, tempering parameter.
        step_size: of the moves, relative to the spread of the points.
        log_evidence: log p(data) so far, relative to the first density.
        acceptance: mean acceptance of the last moves.
        settled: whether the last moves were at the posterior, with nothing left to weigh.
        number: temperatures so far, no chain axis.
    """

    keys: Array
    inner: Any
    step_size: Array
    log_evidence: Array
    acceptance: Array
    settled: Array
    number: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class SMC:
    """Adaptive tempered sequential Monte Carlo (Del Moral, Doucet and Jasra 2006, J. R. Stat. Soc. B 68), by BlackJAX.

    It moves between modes and gives the log evidence (`extra["log_evidence"]`, a number per chain). Each chain is an
    independent run, so that R-hat between them says whether the populations are large enough.

    Attributes:
        draws: points of each chain.
        chains: number of independent runs, side by side.
        ess: effective share of the points that a step of the temperature may leave.
        moves: Hamiltonian moves of each point at each temperature.
        leapfrog: steps of a move.
        reference: density to start from, by site name, where the prior cannot be drawn from or is far away: NumPyro
            distributions of the same support; the prior for all other sites.
        temperatures: temperatures at most.
    """

    draws: int = 1000
    chains: int = 4
    ess: float = 0.7
    moves: int = 10
    leapfrog: int = 8
    reference: Mapping[str, dist.Distribution] | None = None
    temperatures: int = 500

    batch_size = 1
    whole = True
    shuffle = False

    def __post_init__(self) -> None:
        if min(self.draws, self.chains, self.moves, self.leapfrog, self.temperatures) < 1 or not 0 < self.ess < 1:
            raise ValueError(f"SMC: counts must be at least 1 and ess must lie between 0 and 1, got {self!r}.")

    __repr__ = settings

    def __hash__(self) -> int:
        return id(self)

    @classmethod
    def lacks(cls, model: Any) -> str | None:
        """Nothing in the model itself; what has no proper density to start from is refused by `init`."""
        return None

    def passes(self, problem: PlainProblem) -> int:
        """Temperatures at most; `finished` ends the run at the posterior."""
        return self.temperatures

    def init(self, key: Array, problem: PlainProblem) -> SMCState:
        """Draw the populations.

        Raises:
            UsageError: if sites are discrete or have no density to draw from, or `param` sites have no given value.
        """
        import blackjax  # which starts JAX's devices

        refuse(problem, "smc")
        need_given(problem, "smc")
        key_draw, key = jax.random.split(key)
        draw, _, _ = self._compiled(problem)
        points = draw(jax.random.split(key_draw, (self.chains, self.draws)), split_arrays(problem.whole())[0])
        inner = jax.vmap(blackjax.smc.tempered.init)(points)
        inner = inner._replace(tempering_param=jnp.zeros(self.chains))
        zero, keys = jnp.zeros(self.chains), jax.random.split(key, self.chains)
        return SMCState(keys, inner, zero + 0.5, zero, zero, zero > 0, np.asarray(0))

    def step(self, key: Array, problem: PlainProblem, state: SMCState, batch: Any) -> tuple[SMCState, dict[str, Any]]:
        """One temperature; the chains carry their own random keys.

        Raises:
            DataError: if the posterior is not reached within the temperatures allowed.
        """
        _, advance, _ = self._compiled(problem)
        parts = (state.keys, state.inner, state.step_size, state.log_evidence)
        keys, inner, step_size, log_evidence, acceptance, settled = advance(parts, split_arrays(batch)[0])
        number = np.asarray(int(state.number) + 1)
        state = SMCState(keys, inner, step_size, log_evidence, acceptance, settled, number)
        reached = np.asarray(state.inner.tempering_param)
        if int(state.number) == self.temperatures and not self.finished(state):
            raise DataError(
                f"smc: after {self.temperatures} temperatures the populations stand at {reached.min():.2g} of the way "
                "to the posterior (1 is there). State a density nearer to it by reference=, or raise draws."
            )
        info = {
            "objective": float(state.log_evidence.mean()) / problem.size,
            "tempering": float(reached.min()),
            "acceptance": float(state.acceptance.mean()),
        }
        return state, info

    def finished(self, state: SMCState) -> bool:
        """Whether all chains are at the posterior."""
        return bool(np.asarray(state.settled).all())

    def kept(self, problem: PlainProblem, state: SMCState) -> tuple[Sites, dict[str, Any]]:
        """The populations, once they are at the posterior."""
        if not self.finished(state):
            return {}, {}
        _, _, convert = self._compiled(problem)
        return convert(state.inner.particles, split_arrays(problem.whole())[0])

    def draw(self, key: Array, problem: PlainProblem, state: SMCState) -> Sites:
        """The first point of the first chain."""
        return values(problem, {name: z[0, 0] for name, z in state.inner.particles.items()}, problem.data)

    def extra(self, problem: PlainProblem, state: SMCState) -> dict[str, np.ndarray]:
        """The log evidence of each chain, relative to the reference density."""
        return {"log_evidence": np.asarray(state.log_evidence)}

    def _compiled(self, problem: PlainProblem) -> tuple[Callable, Callable, Callable]:
        return compiled(problem, self, lambda: _compile(self, problem))


class _Replaced(Messenger):
    """Some sites of a model with other densities."""

    def __init__(self, model: Callable, laws: Mapping[str, dist.Distribution]) -> None:
        self.laws = laws
        super().__init__(model)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Called by NumPyro for every site."""
        if msg["type"] == "sample" and msg["name"] in self.laws:
            msg["fn"] = self.laws[msg["name"]]


class Bridge:
    """The densities between which a model's points are led: q, which can be drawn from, and log p(data, x) / q(x).

    The two are computed apart: as a difference of joint densities the second would be lost in single precision.
    """

    def __init__(self, problem: PlainProblem, reference: Mapping[str, dist.Distribution] | None) -> None:
        self.laws = dict(reference or {})
        unknown = [name for name in self.laws if name not in problem.sites]
        if unknown:
            raise UsageError(f"smc: reference names {', '.join(unknown)}, the sites are {', '.join(problem.sites)}.")
        self.names = list(problem.sites)
        key = jax.random.key(0)
        self.model = handlers.seed(problem.model, key)
        self.start = handlers.seed(_Replaced(problem.model, self.laws), key)
        self.problem = problem

    def draw(self, key: Array, data: Any) -> Sites:
        """A draw of q, unconstrained.

        Raises:
            UsageError: if a site has no density to draw from.
        """
        try:
            model = handlers.seed(_Replaced(self.problem.model, self.laws), key)
            with handlers.block():
                trace = handlers.trace(model).get_trace(data)
        except NotImplementedError as error:
            raise UsageError(
                "smc starts from a density that it can draw from, and a prior of this model is improper. State one: "
                "reference={name: a NumPyro distribution}."
            ) from error
        return unconstrain_fn(self.start, (data,), {}, {name: trace[name]["value"] for name in self.names})

    def log_prior(self, x: Sites, data: Any) -> Array:
        """log q, the change of variables included."""
        hidden = handlers.block(self.start, hide_fn=lambda site: site["name"] in self._observed(data))
        return -potential_energy(hidden, (data,), {}, x)

    def log_ratio(self, x: Sites, data: Any) -> Array:
        """log p(data, x) - log q(x)."""
        found = constrain_fn(self.start, (data,), {}, x)
        with handlers.block():
            trace = handlers.trace(handlers.substitute(self.model, data=found)).get_trace(data)
        total = jnp.zeros(())
        for name, site in trace.items():
            if site["type"] != "sample" or not (site["is_observed"] or name in self.laws):
                continue
            term = site["fn"].log_prob(site["value"])
            if name in self.laws:
                term = term - self.laws[name].log_prob(site["value"])
            total = total + jnp.sum(term if site["scale"] is None else site["scale"] * term)
        return total

    def _observed(self, data: Any) -> set[str]:
        with handlers.block():
            trace = handlers.trace(self.start).get_trace(data)
        return {name for name, site in trace.items() if site["type"] == "sample" and site["is_observed"]}


def _compile(engine: SMC, problem: PlainProblem) -> tuple[Callable, Callable, Callable]:
    """Compiled: a population per key (chains, draws), one temperature, and points to what is kept of them."""
    bridge, (_, join) = Bridge(problem, engine.reference), split_arrays(problem.whole())
    draw = jax.jit(lambda keys, arrays: jax.vmap(jax.vmap(lambda key: bridge.draw(key, join(arrays))))(keys))

    def convert(points: Sites, arrays: list[Array]) -> tuple[Sites, dict[str, Array]]:
        data, shape = join(arrays), (engine.chains, engine.draws)
        flat = {name: z.reshape(-1, *z.shape[2:]) for name, z in points.items()}
        density = lambda x: bridge.log_prior(x, data) + bridge.log_ratio(x, data)  # noqa: E731
        kept, lp = jax.lax.map(lambda x: (values(problem, x, data), density(x)), flat)
        return {name: v.reshape(*shape, *v.shape[1:]) for name, v in kept.items()}, {"lp": lp.reshape(shape)}

    advance = jax.jit(lambda parts, arrays: jax.vmap(lambda *one: _temper(engine, bridge, join(arrays), *one))(*parts))
    return draw, advance, jax.jit(convert)


def _temper(
    engine: SMC, bridge: Bridge, data: Any, key: Array, inner: Any, step_size: Array, log_evidence: Array
) -> tuple[Array, Any, Array, Array, Array, Array]:
    """One temperature of one chain: resample, move at the temperature reached, reweight to the next.

    The moves adapt to the spread of the points and to the acceptance.
    """
    import blackjax
    from blackjax.smc.resampling import systematic

    settled = inner.tempering_param >= 1
    key, key_jitter, key_move = jax.random.split(key, 3)
    flat = jax.vmap(lambda x: ravel_pytree(x)[0])(inner.particles)
    kernel = blackjax.smc.adaptive_tempered.build_kernel(
        lambda x: bridge.log_prior(x, data),
        lambda x: bridge.log_ratio(x, data),
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        systematic,
        engine.ess,
    )
    jitter = jax.random.uniform(key_jitter, (engine.draws,), minval=0.5, maxval=1.0)  # against periodic orbits
    count = engine.draws
    parameters = {
        "step_size": step_size * jitter,
        "inverse_mass_matrix": jnp.broadcast_to(flat.var(0) + 1e-12, (count, flat.shape[1])),
        "num_integration_steps": jnp.full(count, engine.leapfrog),
    }
    inner, info = kernel(key_move, inner, engine.moves, parameters)
    acceptance = jnp.mean(info.update_info.acceptance_rate)
    step_size = jnp.clip(step_size * jnp.exp(_RATE * (acceptance - _ACCEPTANCE)), 1e-4, 2.0)
    increment = jnp.where(settled, 0.0, info.log_likelihood_increment)
    return key, inner, step_size, log_evidence + increment, acceptance, settled
