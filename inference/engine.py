"""The contract of an engine, and the only loop: batches, progress, log, guards, checkpoints, resume, time budget."""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array

from hetmodels.errors import DataError, UsageError
from inference.checkpoint import Checkpoint, shapes


class Engine(Protocol):
    """Settings of an inference algorithm, as a frozen dataclass; its state is a pytree that `run` carries.

    `whole` says that a step takes all data at once, `shuffle` that batches are drawn anew in each pass.
    Optional methods:
        sweep(key, problem, state): after each pass, returning like `step`.
        finished(state): whether there is nothing left to do.
        kept(problem, state): of a sampler, after each pass: the draws of the shared values that the pass made and
            their statistics, two dicts of arrays (chains, draws, …) with any number of draws, none included.
        sample(key, problem, state): of a fitted distribution, after the last pass: draws (1, draws, …); {} if it is
            a point.
    """

    batch_size: int
    whole: bool
    shuffle: bool

    def passes(self, problem: Any) -> int:
        """How many passes over the data at most."""

    def init(self, key: Array, problem: Any) -> Any:
        """The first state."""

    def step(self, key: Array, problem: Any, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        """One batch: the new state and what to report."""

    def draw(self, key: Array, problem: Any, state: Any) -> dict[str, Array]:
        """One draw, or the point, of the shared values."""

    @classmethod
    def lacks(cls, model: Any) -> str | None:
        """What this engine misses in a family (instance or class) or model function, in words; None if nothing."""


@dataclasses.dataclass(frozen=True)
class Log:
    """Where a run reports.

    Attributes:
        record: called with a dict after every pass (and for samplers every step).
        show: called with (done, total, info) whenever something moved; draws the progress bar.
    """

    record: Callable[[dict[str, Any]], None] = lambda row: None
    show: Callable[[int, int, dict[str, Any]], None] = lambda done, total, info: None


@dataclasses.dataclass(frozen=True)
class Result:
    """What `run` hands back.

    Attributes:
        state: the last state.
        draws: draws of the shared values by name, (chains, draws, …); {} from an engine that ends at a point.
        stats: statistics of a sampler by ArviZ's names, (chains, draws).
        trace: a dict per pass.
        complete: whether the engine had done, rather than the time budget ended it.
    """

    state: Any
    draws: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    trace: list[dict[str, Any]]
    complete: bool


def run(
    engine: Any,
    problem: Any,
    *,
    key: Array,
    log: Log | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    budget: float | None = None,
    every: float = 30.0,
) -> Result:
    """Run an engine on a problem.

    Args:
        engine: the engine.
        problem: what it sees.
        key: random key; batches, steps and draws have keys of their own that depend only on their number, so that a
            resumed run repeats an uninterrupted one.
        log: where to report.
        checkpoint: folder for checkpoints; none are written if None.
        resume: go on from the checkpoint there.
        budget: stop after about this many seconds with what there is.
        every: seconds between checkpoints inside a pass; one is always written after a pass.

    Raises:
        DataError: if the objective or the state becomes non-finite, or there is nothing to resume.
    """
    loop = _Loop(engine, problem, key, log or Log(), Checkpoint(checkpoint) if checkpoint else None, every)
    return loop.go(resume, budget)


class _Loop:
    def __init__(self, engine: Any, problem: Any, key: Array, log: Log, store: Checkpoint | None, every: float) -> None:
        self.engine, self.problem, self.log, self.store, self.every = engine, problem, log, store, every
        self.key_init, self.key_data, self.key_step, self.key_sweep = jax.random.split(key, 4)
        self.pass_, self.done_batches = 0, 0
        self.start: dict[str, list] = {}
        self.trace: list[dict[str, Any]] = []
        self.kept: list[dict[str, np.ndarray]] = []
        self.saved = time.monotonic()

    def go(self, resume: bool, budget: float | None) -> Result:
        start = time.monotonic()
        state = self.engine.init(self.key_init, self.problem)
        self.start = shapes(state)
        if resume:
            state = self._load(state)
        complete = True
        total = self.engine.passes(self.problem)
        while self.pass_ < total and not self._finished(state):
            state = self._one_pass(state, total)
            if budget is not None and time.monotonic() - start > budget:
                complete = self.pass_ >= total or self._finished(state)
                break
        kept = self._kept()
        draws, stats = ({k[6:]: v for k, v in kept.items() if k.startswith(start)} for start in ("value/", "stats/"))
        sample = getattr(self.engine, "sample", None)
        if sample:
            drawn = sample(jax.random.fold_in(self.key_init, 1), self.problem, state)
            draws = {name: np.asarray(value) for name, value in drawn.items()}
        return Result(state, draws, stats, self.trace, complete)

    def _kept(self) -> dict[str, np.ndarray]:
        """Draws and statistics of all passes, joined along the axis of draws."""
        return {k: np.concatenate([part[k] for part in self.kept], axis=1) for k in (self.kept[0] if self.kept else {})}

    def _finished(self, state: Any) -> bool:
        finished = getattr(self.engine, "finished", None)
        return bool(finished(state)) if finished else False

    def _batches(self) -> Any:
        if self.engine.whole:
            return [self.problem.whole()]
        rows = math.ceil(self.problem.size / self._per_pass)  # equal batches, so that hardly any row is padding
        return self.problem.batches(self.pass_, self.key_data, rows, self.engine.shuffle)

    @property
    def _per_pass(self) -> int:
        return 1 if self.engine.whole else max(1, math.ceil(self.problem.size / self.engine.batch_size))

    def _one_pass(self, state: Any, total: int) -> Any:
        info: dict[str, Any] = {}
        per_pass = self._per_pass
        key = jax.random.fold_in(self.key_step, self.pass_)
        for number, batch in enumerate(self._batches()):
            if number < self.done_batches:
                continue
            state, info = self.engine.step(jax.random.fold_in(key, number), self.problem, state, batch)
            self.done_batches = number + 1
            self.log.show(self.pass_ * per_pass + number + 1, total * per_pass, info)
            if self.store and time.monotonic() - self.saved > self.every and not self.engine.whole:
                state = self._settled(state)
                self._save(state)
        sweep = getattr(self.engine, "sweep", None)
        if sweep:
            state, info = sweep(jax.random.fold_in(self.key_sweep, self.pass_), self.problem, state)
        self._record(state, info)
        self.pass_, self.done_batches = self.pass_ + 1, 0
        kept = getattr(self.engine, "kept", None)
        if kept:
            draws, stats = kept(self.problem, state)
            named = {f"value/{k}": v for k, v in draws.items()} | {f"stats/{k}": v for k, v in stats.items()}
            if named:
                self.kept.append({k: np.asarray(v) for k, v in named.items()})
        if self.store and (not self.engine.whole or time.monotonic() - self.saved > self.every):
            self._save(state)
        return state

    def _record(self, state: Any, info: dict[str, Any]) -> None:
        row = {"pass": self.pass_, **{k: _number(v) for k, v in info.items()}}
        value = row.get("objective")
        if isinstance(value, float) and not math.isfinite(value):
            raise DataError(
                f"{type(self.engine).__name__}: the objective became {value} in pass {self.pass_ + 1}. A non-finite "
                "value comes from bad images or too large a step: run `hetmodels inspect`, lower the learning rate."
            )
        self.trace.append(row)
        self.log.record(row)

    def _settled(self, state: Any) -> Any:
        settled = getattr(self.engine, "settled", None)
        return settled(self.problem, state) if settled else state

    def _save(self, state: Any) -> None:
        place = {
            "pass": self.pass_,
            "batches": self.done_batches,
            "trace": self.trace,
            "engine": repr(self.engine),
            "start": self.start,
        }
        draws = {f"draw/{k}": v for k, v in self._kept().items()}
        assert self.store is not None
        self.store.save(state, json.dumps(place), draws)
        self.saved = time.monotonic()

    def _load(self, state: Any) -> Any:
        if self.store is None or not self.store.exists():
            raise DataError("resume: there is no checkpoint to go on from; start the run without --resume.")
        state, text, draws = self.store.load(state)
        place = json.loads(text)
        if place["engine"] != repr(self.engine):
            raise DataError(
                f"resume: the checkpoint was written by {place['engine']}, this run has {self.engine!r}; "
                "repeat the settings of the run, or start a new one with --overwrite."
            )
        if place["start"] != self.start:
            name = next(n for n in self.start | place["start"] if self.start.get(n) != place["start"].get(n))
            raise DataError(
                f"resume: the checkpoint's run began with {name} of {place['start'].get(name)}, this one has "
                f"{self.start.get(name)}; give the same data, box and family, or start anew with --overwrite."
            )
        self.pass_, self.done_batches, self.trace = place["pass"], place["batches"], place["trace"]
        self.kept = [draws] if draws else []
        return state


def _number(value: Any) -> Any:
    if isinstance(value, (Array, np.ndarray, np.generic)):
        value = np.asarray(value)
        return value.tolist() if value.ndim else value.item()
    return value


def compatible(model: Any, engine: Any) -> str | None:
    """None if the engine (class or instance) can fit the model (family class or instance), else why not, in words."""
    return engine.lacks(model)


def require(model: Any, engine: Any) -> None:
    """Refuse an engine that lacks what it needs, before any work.

    Raises:
        UsageError: naming what is missing and which engines would serve.
    """
    reason = compatible(model, engine)
    if reason is not None:
        from inference.catalogue import engines_for

        others = ", ".join(engines_for(model)) or "none"
        raise UsageError(f"{reason} Engines that can: {others}.")
