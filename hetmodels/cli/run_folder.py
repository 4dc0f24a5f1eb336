"""The folder of a fit: begun, gone on with, and taken away again if the start failed."""

import argparse
import contextlib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetmodels.cli.config import options_table, read_config, to_toml, write_config
from hetmodels.cli.machine import OPTIONS
from hetmodels.errors import UsageError
from hetmodels.run_directory import RunDirectory

if TYPE_CHECKING:
    from hetmodels.data.particles import Particles

_FREE = ("particles", "datadir", "output", *OPTIONS)  # may change when a run goes on; the data hash stands for the data
_FIRST = (".lock", "run.log", "trace.jsonl", "volumes", "checkpoint")  # what a run makes before it has any result


@contextlib.contextmanager
def run_folder(args: argparse.Namespace, objects: Mapping[str, Any], data_hash: str) -> Iterator[RunDirectory]:
    """The folder of this run, locked, with its log open and its config.toml written.

    If the block fails before a checkpoint was written, what was made here is removed, and what --overwrite put aside
    is brought back.

    Args:
        args: options of the command.
        objects: tables of the family and engine.
        data_hash: of the particles.

    Raises:
        UsageError: if the folder cannot be used, or --resume is given with other settings or data than the run's.
    """
    table = options_table(args) | dict(objects) | {"provenance": {"data_hash": data_hash}}
    clear_failed_start(args.output)
    there = args.output.is_dir()
    folder = RunDirectory.create(args.output, overwrite=args.overwrite, resume=args.resume)
    try:
        with folder.lock():
            if args.resume:
                check_same(folder, table)
                _sweep(folder)
            else:
                write_config(folder.config, table)
            with folder.logging():
                yield folder
        folder.drop_replaced()
    except BaseException:
        if folder.replaced.is_dir():
            folder.bring_back()
        elif not (args.resume or folder.checkpoint.is_dir() or folder.posterior.exists()):
            folder.config.unlink(missing_ok=True)
            clear_failed_start(folder.path)
            if not there and not any(folder.path.iterdir()):
                folder.path.rmdir()
        raise


def check_same(folder: RunDirectory, table: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under other settings.

    Raises:
        UsageError: naming the first setting that differs.
    """
    old, new = _flat(read_config(folder.config)), _flat(tomllib.loads(to_toml(table)))
    for key in sorted(old | new):
        if key not in _FREE and old.get(key) != new.get(key):
            was, is_now = (f"{v[key]!r}" if key in v else "not given" for v in (old, new))
            what = "the images or the table" if key == "provenance.data_hash" else key
            raise UsageError(
                f"{folder.path}: --resume goes on with the run as it was begun, but {what} changed: {was}, now "
                f"{is_now}. Repeat the run's own options ({folder.config} has them), or begin anew with --overwrite."
            )


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def clear_failed_start(path: Path) -> None:
    """Remove what a start leaves that was killed before it had written anything: lock, log, empty folders."""
    run = RunDirectory(path)
    entries = list(path.iterdir()) if path.is_dir() else []
    if not entries or any(entry.name not in _FIRST and not _temporary(entry) for entry in entries):
        return
    if any(entry.is_dir() and any(entry.iterdir()) for entry in entries):
        return
    with run.lock():
        for entry in entries:
            entry.rmdir() if entry.is_dir() else entry.unlink(missing_ok=True)
    (path / ".lock").unlink(missing_ok=True)


def _sweep(folder: RunDirectory) -> None:
    """Remove temporary files of a killed process."""
    for place in (folder.path, folder.volumes, folder.checkpoint):
        for entry in place.iterdir() if place.is_dir() else ():
            if _temporary(entry):
                entry.unlink()


def _temporary(path: Path) -> bool:
    return path.is_file() and ".tmp" in path.suffixes


def options_of(folder: RunDirectory, datadir: Path | None = None) -> argparse.Namespace:
    """The options of `fit` that a run was made with, the images looked for in a folder if one is given."""
    from hetmodels.cli import fit, parse

    words = ["--config", str(folder.config), "-o", str(folder.path)] + (
        [] if datadir is None else ["--datadir", str(datadir)]
    )
    return parse("fit", fit, words)


def particles_of(folder: RunDirectory, datadir: Path | None = None) -> "Particles":
    """The particles of a run, opened as the fit did.

    Raises:
        DataError: if they cannot be opened any more.
    """
    from hetmodels.cli.common import open_particles

    options = options_of(folder, datadir)
    return open_particles(options).with_holdout(options.holdout)
