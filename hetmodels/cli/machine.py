"""Where a command computes, and with how much of the machine: set before JAX is imported."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hetmodels.cli.common import number
from hetmodels.errors import UsageError

OPTIONS = ("device", "threads", "memory", "budget", "checkpoint_every")  # they change speed, never a value


def machine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this module and those that bound a run."""
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=("cpu", "gpu"), help="where to compute (default: a GPU if there is one)")
    machine.add_argument(
        "--threads", type=number(int, 1), metavar="N", help="bind the process to N processors (default: all it may use)"
    )
    machine.add_argument(
        "--memory", type=number(float, above=0), metavar="GB", help="memory that the run may take, images included"
    )
    machine.add_argument(
        "--budget", type=number(float, above=0), metavar="S", help="stop after the pass in which S seconds are over"
    )
    machine.add_argument(
        "--checkpoint-every", type=number(float, 0), default=30.0, metavar="S",
        help="seconds between checkpoints within a pass (default 30); there is one after each pass",
    )  # fmt: skip


READ_BY_JAX = "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


@contextlib.contextmanager
def on_machine(args: argparse.Namespace) -> Iterator[None]:
    """Set what JAX reads when it is imported and starts, and bind this process to its processors, for the block.

    Afterwards the environment and the processors are as before.

    Raises:
        UsageError: if the device is not there.
    """
    before, environment = os.sched_getaffinity(0), {name: os.environ.get(name) for name in READ_BY_JAX}
    _keep_compiled()
    try:
        if args.device:
            os.environ["JAX_PLATFORMS"] = "cpu" if args.device == "cpu" else "cuda"
        if args.threads:
            os.sched_setaffinity(0, processors(sorted(before), args.threads, os.getpid()))
        _start(args.device)
        yield
    finally:
        os.sched_setaffinity(0, before)
        for name, value in environment.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def processors(allowed: list[int], count: int, offset: int) -> set[int]:
    """`count` of the allowed processors; runs side by side have different offsets, and so different ones.

    >>> sorted(processors([0, 1, 2, 3], 2, 7))
    [0, 3]
    """
    return {allowed[(offset + i) % len(allowed)] for i in range(min(count, len(allowed)))}


def _keep_compiled() -> None:
    """Have JAX keep compiled programs in the user's cache folder, if it can be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hetmodels" / "jax"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _start(device: str | None) -> None:
    """Start JAX, on the device asked for."""
    import jax

    try:
        backend = jax.default_backend()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"--device {device}: JAX finds none ({reason}). Install hetmodels[cuda12] or [cuda13] for NVIDIA GPUs, "
            "see `hetmodels doctor`, or leave --device out."
        ) from error
    if device and (backend == "cpu") != (device == "cpu"):
        raise UsageError(f"--device {device}: JAX is at work on {backend} in this process already.")
