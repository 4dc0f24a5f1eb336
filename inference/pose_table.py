"""Poses for engines that climb by gradients: a few candidates of every particle, searched for anew as the maps improve.

Between two searches the candidates stay, and what is climbed is the log of the sum over them (`hetmodels.pose_sum`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.errors import UsageError
from hetmodels.model import integrable
from hetmodels.scoring import Templates
from hetmodels.selection import PoseTable

_ROWS = 500  # particles searched at once


def summed(engine: Any, problem: Any) -> Any:
    """The problem with its poses summed over candidates, where they are searched and the engine can climb that sum.

    Raises:
        UsageError: if the poses are unknown and there are no maps to search with.
    """
    if not getattr(engine, "sums_poses", False) or not getattr(problem, "searches", False):
        return problem
    family, pose = problem.family, problem.observation.pose
    shared = problem.shared(problem.initial(jax.random.key(0)))
    if not integrable(family, shared):
        return problem
    if not problem.started and not pose.placed:
        name = type(engine).__name__.lower()
        raise UsageError(
            f"{name}: unknown poses need maps to start from; give --reference MAP.mrc (or start=), low-passed by "
            "--ini-high, or let em find a first map and give --start RUN."
        )
    return dataclasses.replace(problem, summed=pose.poses)


def first_candidates(key: Array, problem: Any) -> Any:
    """A table with the candidates of every training particle; () where poses are not summed.

    They are searched for with the maps to start from; without these they are the file's.
    """
    if not getattr(problem, "summed", 0):
        return ()
    pose = problem.observation.pose
    if getattr(pose, "direction_counts", None) is not None:
        raise UsageError("pose.direction_counts: the density of viewing directions is learned under em alone.")
    table = dataclasses.replace(pose.table(problem), **_room(problem))
    if not problem.started:
        table = dataclasses.replace(table, limit=np.asarray(0))
    table = searched(key, problem, table, problem.starting(key))
    return dataclasses.replace(table, limit=np.asarray(problem.observation.disc.limit))


def searched(key: Array, problem: Any, table: PoseTable, shared: dict[str, Array]) -> PoseTable:
    """The table with every training particle searched anew.

    Args:
        key: random key of the grids' places.
        problem: what the engine sees.
        table: the candidates so far.
        shared: shared values to search with, `noise` among them.
    """
    obs, table = problem.observation, jax.tree.map(np.array, table)
    templates = Templates.of(problem.family, shared, obs, jnp.asarray(shared["noise"]))
    for number, batch in enumerate(problem.batches(0, key, _ROWS)):
        real = np.asarray(batch.weight) > 0
        found = obs.pose.refresh(jax.random.fold_in(key, number), templates, batch, table, None)
        table.fill(np.asarray(batch.index)[real], jax.tree.map(lambda leaf, real=real: np.asarray(leaf)[real], found))
    return table


def at_candidates(table: Any, batch: Any) -> Any:
    """A batch with the poses to sum over; as it is without a table."""
    if not isinstance(table, PoseTable) or not isinstance(batch, Batch):
        return batch
    return dataclasses.replace(batch, poses=table.support(np.asarray(batch.index)))


def candidates_report(problem: Any, table: Any) -> dict[str, Any]:
    """What a pass says of its candidates; {} without a table."""
    if not isinstance(table, PoseTable):
        return {}
    rows = problem.training
    return {"search_order": float(table.order[rows].mean()), "discarded": float(table.discarded[rows].mean())}


def _room(problem: Any) -> dict[str, np.ndarray]:
    """Columns for as many poses as are summed."""
    empty = PoseTable.empty(problem, problem.summed, 0)
    return {name: getattr(empty, name) for name in ("rotation", "shift", "weight", "log_prior")}
