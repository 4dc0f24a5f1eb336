"""What an encoder loses against a q that is made for each particle (Cremer, Li and Duvenaud 2018)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.plain import Sites
from inference.machine import Machine

PARTICLES, STEPS, RATE, DRAWS = 32, 60, 0.1, 24


def amortization_gap(machine: Machine, params: Sites, at_once: int | None = None) -> np.ndarray:
    """Nats that the bound of single particles gains by steps of Adam on the numbers of their own q.

    Gains of several nats on average say that the encoder is too small or was trained too little: train longer, or
    start from the run with a table.

    Args:
        machine: model and guide with an encoder.
        params: unconstrained parameters, which stay as they are.
        at_once: particles that go through the model at a time, see `Machine.parts`.

    Returns:
        One number per particle, of at most 32, held out if there are any.
    """
    gain, parts = jax.jit(partial(_gains, machine)), some_particles(machine, at_once)
    return np.concatenate([np.asarray(gain(params, part, jax.random.key(i))) for i, part in enumerate(parts)])


def some_particles(machine: Machine, at_once: int | None = None) -> list[Batch]:
    """At most 32 particles in equal batches: held out if there are any and the guide knows them, else of training."""
    problem = machine.problem
    held = np.flatnonzero(problem.particles.held_out)  # type: ignore[attr-defined]
    rows = held if len(held) and not machine.tabled else problem.training  # type: ignore[attr-defined]
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(PARTICLES, len(rows))).astype(int))]
    size = len(chosen) // machine.parts(problem.batch(chosen), at_once)  # type: ignore[attr-defined]
    return [problem.batch(chosen[start : start + size]) for start in range(0, len(chosen), size)]  # type: ignore[attr-defined]


def _gains(machine: Machine, params: Sites, batch: Batch, key: Array) -> Array:
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))
    key_steps, key_score = jax.random.split(key)

    def loss(numbers: Array, key: Array) -> Array:
        local, rest = machine.bound(params, numbers, batch, key)  # the batch stands for all particles
        return -(local + rest) * len(numbers) / machine.problem.size

    def step(carry: tuple, key: Array) -> tuple[tuple, None]:
        numbers, state = carry
        move, state = optimiser.update(jax.grad(loss)(numbers, key), state)
        return (numbers + move, state), None

    start = machine.encoded(params, batch)
    (best, _), _ = jax.lax.scan(step, (start, optimiser.init(start)), jax.random.split(key_steps, STEPS))

    def score(numbers: Array) -> Array:
        """The bound of each particle: the total with its own numbers, the others' as they were."""
        each = jnp.eye(len(start))[:, :, None] * (numbers - start) + start
        keys = jax.random.split(key_score, DRAWS)
        return -jax.lax.map(lambda one: jnp.mean(jax.lax.map(lambda key: loss(one, key), keys)), each)

    return score(best) - score(start)
