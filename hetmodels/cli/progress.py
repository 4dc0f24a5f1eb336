"""What a fit shows while it runs, and what it says at the end."""

import argparse
import contextlib
import logging
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from hetmodels.run_directory import RunDirectory

_log = logging.getLogger("hetmodels.fit")


@contextlib.contextmanager
def progress(args: argparse.Namespace) -> Iterator[Any]:
    """A maker of `Log` objects that draw one progress bar on standard error."""
    from tqdm import tqdm

    from inference.engine import Log

    quiet = args.json or not sys.stderr.isatty()
    with tqdm(total=1, unit="step", disable=quiet, dynamic_ncols=True, file=sys.stderr) as bar:

        def show(done: int, total: int, info: dict[str, Any]) -> None:
            bar.total = total
            bar.update(done - bar.n)

        def make(record: Any) -> Log:
            def both(row: dict[str, Any]) -> None:
                record(row)
                words = in_words(row)
                bar.set_postfix(words)
                _log.info("pass %s: %s", row["pass"] + 1, ", ".join(f"{k} {v}" for k, v in words.items()))

            return Log(both, show)

        yield make


def in_words(row: dict[str, Any]) -> dict[str, str]:
    """What of a row of the trace is shown."""
    words = {}
    if row.get("objective") is not None:
        words["objective"] = f"{row['objective']:.3f}"
    if row.get("resolution"):
        words["resolution"] = f"{row['resolution']:.1f} Å"
    return words


def goodbye(args: argparse.Namespace, folder: RunDirectory, metrics: dict[str, Any], complete: bool) -> str:
    """What was done, where it is, and what to do next."""
    lines = []
    if metrics.get("resolution_0143") is not None:
        lines.append(f"resolution at FSC = 0.143: {metrics['resolution_0143']:.1f} Å (masked, phase-randomised)")
    if "class_shares" in metrics:
        lines.append("class shares: " + ", ".join(f"{v:.3f}" for v in metrics["class_shares"]))
    if "starts_ari" in metrics:
        count, best = len(metrics["starts_objective"]), metrics["starts_best"]
        lines.append(
            f"start {best} of {count} is kept; its classes agree with those of the others to an adjusted Rand index of "
            f"{metrics['starts_ari']:.2f} (1 is the same, 0 is chance)"
        )
    if "class_resolution_0143" in metrics:
        each = ", ".join(f"{v:.1f}" for v in metrics["class_resolution_0143"])
        lines.append(f"resolution of the classes at FSC = 0.143: {each} Å (masked, phase-randomised)")
    if "log_likelihood_held_out" in metrics:
        value = metrics["log_likelihood_held_out"]
        lines.append(f"held-out log likelihood: {value:.2f} nats per particle over noise alone")
    if not complete:
        lines.append("the time budget ended the run early; go on with --resume")
    run = shlex.quote(str(folder.path))
    where = ["maps in volumes/"] * folder.map.exists() + ["per-particle results in particles.star"]
    lines.append(f"everything is in {folder.path}/: {', '.join(where)}, draws and provenance in posterior.nc")
    if folder.map.exists():
        more = f", or `hetmodels volumes {run} -o maps --classes`" if "class_shares" in metrics else ""
        lines.append(f"next: open {folder.volumes}/*.mrc in ChimeraX{more}")
    truth = args.particles.with_suffix(".truth")
    if truth.is_dir():
        lines.append(f"next: hetmodels evaluate {run} --truth {shlex.quote(str(truth))}")
    return "\n".join(lines)
