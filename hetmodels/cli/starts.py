"""One fit, or several that differ in their random start alone, with trace and checkpoints; the best is kept."""

import argparse
import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

from hetmodels.cli.progress import progress
from hetmodels.posterior import Posterior
from hetmodels.run_directory import RunDirectory

_log = logging.getLogger("hetmodels.fit")


def fit_starts(args: argparse.Namespace, folder: RunDirectory, problem: tuple, options: dict[str, Any]) -> Posterior:
    """Run the engine `--starts` times; returns the posterior of the highest objective.

    Finished starts are kept in the checkpoint folder, so that --resume goes on with the one that was cut.

    Args:
        args: options of the command.
        folder: where trace and checkpoints go.
        problem: family, particles and engine.
        options: further arguments of `inference.fit`.
    """
    begun, found, rows = time.monotonic(), [], 0
    for number in range(args.starts):
        place = folder.checkpoint if args.starts == 1 else folder.checkpoint / f"start_{number + 1}"
        saved = place / "posterior.nc"
        if args.resume and saved.exists():
            found.append(Posterior.load(saved))
        else:
            spent = time.monotonic() - begun
            budget = None if args.budget is None else max(args.budget - spent, 1e-3)
            found.append(_one(args, folder, problem, options, place, (number, rows, budget)))
        if not found[-1].provenance.get("complete", True):
            return found[-1]
        if args.starts > 1 and not saved.exists():
            found[-1].save(saved)
        rows += len(found[-1].trace)
    return found[0] if args.starts == 1 else _best(found)


def _one(
    args: argparse.Namespace, folder: RunDirectory, problem: tuple, options: dict[str, Any], place: Path, at: tuple
) -> Posterior:
    import jax

    import inference
    from inference.checkpoint import Checkpoint

    (number, rows, budget), store = at, Checkpoint(place)
    resume = args.resume and store.exists()
    key = jax.random.fold_in(options["key"], number) if number else options["key"]
    name = {"start": number + 1} if args.starts > 1 else {}
    with folder.tracing(rows + (store.rows() if resume else 0)) as trace, progress(args) as log:
        return inference.fit(
            *problem, log=log(lambda row: trace.append(name | row)), checkpoint=place, resume=resume, budget=budget,
            every=args.checkpoint_every, **(options | {"key": key}),
        )  # fmt: skip


def _best(found: list[Posterior]) -> Posterior:
    from hetmodels.analysis.starts import compare_starts

    starts = compare_starts(found)
    _log.info("start %d has the highest objective of %s", starts.best + 1, starts.objective.round(4).tolist())
    if starts.warning:
        _log.warning("%s", starts.warning)
    facts = {
        "starts_objective": [float(v) for v in starts.objective],
        "starts_best": starts.best + 1,
        "starts_ari": starts.reproduced,
    }
    best = found[starts.best]
    return dataclasses.replace(best, provenance=best.provenance | {"starts": facts})
