"""Bounds of the evidence that are tighter than the evidence lower bound, from more draws of each particle's q."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.plain import Sites
from inference.amortization import some_particles
from inference.guides import TableState
from inference.machine import Machine

DRAWS = 64


def importance_bound(log_ratios: Array, draws: int) -> Array:
    """Bound by so many draws, log of the mean of p(y, u) / q(u), averaged over sets of draws, (rows,).

    With one draw it is the evidence lower bound; it rises with their number to the log evidence (Burda, Grosse and
    Salakhutdinov 2016, theorem 1).

    Args:
        log_ratios: log p(y, u) - log q(u) at draws u from q, (draws, rows), see `Machine.log_ratios`.
        draws: how many in a set; those that fill no set are left out.

    Raises:
        ValueError: if there are not as many draws.
    """
    if not 1 <= draws <= len(log_ratios):
        raise ValueError(f"importance_bound: {draws} draws of {len(log_ratios)} must lie between 1 and all of them.")
    sets = log_ratios[: len(log_ratios) // draws * draws].reshape(-1, draws, log_ratios.shape[1])
    return jnp.mean(jax.scipy.special.logsumexp(sets, axis=1) - jnp.log(draws), axis=0)


def importance_gap(machine: Machine, params: Sites, table: TableState | None, at_once: int | None = None) -> np.ndarray:
    """Nats that the bound by 64 draws lies above that by one: what q of single particles misses, at the least.

    Args:
        machine: model and guide.
        params: unconstrained parameters.
        table: numbers of q per particle, or None where an encoder gives them.
        at_once: particles that go through the model at a time, see `Machine.parts`.

    Returns:
        One number per particle, of at most 32, held out if there are any and an encoder gives their q.
    """
    look = jax.jit(partial(machine.log_ratios, draws=DRAWS))
    found = []
    for number, batch in enumerate(some_particles(machine, at_once)):
        numbers = None if table is None else table.value[machine.rows(batch)]
        ratios = look(params, numbers, batch, jax.random.key(number))
        found.append(np.asarray(importance_bound(ratios, DRAWS) - importance_bound(ratios, 1)))
    return np.concatenate(found)
