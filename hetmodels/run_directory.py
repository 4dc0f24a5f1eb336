"""The folder of one run: what its files are called, and how they are written so that a kill leaves none in halves."""

import contextlib
import json
import logging
import math
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from hetmodels.errors import DataError, UsageError

LOGGERS = ("hetmodels", "inference")


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text of numbers, strings, containers, paths and arrays; what JSON cannot hold (NaN, infinity) becomes null.

    >>> to_json({"fsc": (1.0, float("nan"))})
    '{"fsc": [1.0, null]}'
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with the same suffix, which takes its place when the block ends well.

    Whatever happens inside the block, `path` holds either its old content or all of the new one.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_space(folder: Path, needed: int) -> None:
    """Check the free disk space before the work.

    Args:
        folder: where the files will be written; need not exist yet.
        needed: bytes.

    Raises:
        DataError: if fewer bytes are free.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DataError(
            f"{folder}: the output needs {needed / 1e9:.2f} GB of disk and only {free / 1e9:.2f} GB are free. "
            "Free some space or choose another folder."
        )


def available_memory() -> int:
    """Bytes of memory that a new process may take: the kernel's estimate, or less where a control group limits it."""
    with open("/proc/meminfo", encoding="ascii") as file:
        facts = dict(line.split(":") for line in file)
    free = int(facts["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


class RunDirectory:
    """A run's folder; the attributes name its files, whether or not they are there yet.

    Attributes:
        path: the folder.
        config: everything needed to repeat the run (TOML).
        replaced: the files of a run that this one replaces, until its first checkpoint.
        log: what the run said.
        trace: one JSON object per step.
        checkpoint: folder of the state from which the run goes on.
        posterior: the result (netCDF).
        particles: the input's table with the columns inferred.
        volumes: folder of maps; `map`, `half1`, `half2`, `mask`, `sharpened`, `local_resolution`, `fsc` lie in it.
        metrics: scores (JSON).
        report: the report (HTML).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.replaced = self.path / ".replaced"
        self.log = self.path / "run.log"
        self.trace = self.path / "trace.jsonl"
        self.checkpoint = self.path / "checkpoint"
        self.posterior = self.path / "posterior.nc"
        self.particles = self.path / "particles.star"
        self.volumes = self.path / "volumes"
        self.metrics = self.path / "metrics.json"
        self.report = self.path / "report.html"
        self.map = self.volumes / "map.mrc"
        self.half1 = self.volumes / "half1.mrc"
        self.half2 = self.volumes / "half2.mrc"
        self.mask = self.volumes / "mask.mrc"
        self.sharpened = self.volumes / "map_sharpened.mrc"
        self.local_resolution = self.volumes / "local_resolution.mrc"
        self.fsc = self.volumes / "fsc.star"

    def class_map(self, number: int) -> Path:
        """Map of a class, counted from 1: class_001.mrc."""
        return self.volumes / f"class_{number:03d}.mrc"

    def latent_map(self, axis: int, step: int) -> Path:
        """Map at a step, counted from 0, along a latent axis, counted from 1: latent_1_00.mrc."""
        return self.volumes / f"latent_{axis}_{step:02d}.mrc"

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False) -> "RunDirectory":
        """Make the folder for a new run, or take the one of an earlier run.

        Args:
            path: the folder; parents are made as needed.
            overwrite: put the files of the run that is there aside, until `drop_replaced`. Other files are never
                touched.
            resume: go on with the run that is there.

        Raises:
            UsageError: if a run is there and neither is asked for, if there is none to resume, or if the path holds
                something that is no run.
            OSError: if the folder cannot be made or written to.
        """
        run = cls(path)
        run.bring_back()
        if overwrite and resume:
            raise UsageError("--overwrite begins anew and --resume goes on: give one of them.")
        if run.path.exists() and not run.path.is_dir():
            raise UsageError(f"{run.path} is a file; a run needs a folder. Give another path to -o.")
        filled = run.path.is_dir() and any(run.path.iterdir())
        if resume:
            if not run.config.is_file():
                raise UsageError(f"{run.path} holds no run to resume (no config.toml). Leave out --resume to begin.")
        elif filled and not run.config.is_file():
            raise UsageError(f"{run.path} is not empty and holds no run (no config.toml). Give a new folder to -o.")
        elif filled and not overwrite:
            raise UsageError(
                f"{run.path} holds a run already. Add --resume to go on with it or --overwrite to replace it."
            )
        run.path.mkdir(parents=True, exist_ok=True)
        with replacing(run.path / "writable") as probe:
            probe.touch()
        (run.path / "writable").unlink()
        if overwrite:
            with run.lock():
                run._set_aside()
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunDirectory":
        """The folder of a run that was made before.

        Raises:
            DataError: if it is not there or holds no run.
        """
        run = cls(path)
        if not run.path.exists():
            raise DataError(f"{run.path}: no such folder. Give the folder that `hetmodels fit … -o` made.")
        if not run.config.is_file():
            raise DataError(
                f"{run.path} holds no run (no config.toml). Give the folder that `hetmodels fit … -o` made."
            )
        return run

    def _entries(self) -> list[Path]:
        """What a run leaves, as far as it is there."""
        files = (self.log, self.trace, self.posterior, self.particles, self.metrics, self.report, self.config)
        everything = (self.checkpoint, self.volumes, *files, *self.path.glob("particles.cs"))
        return [entry for entry in everything if entry.exists()]

    def _set_aside(self) -> None:
        self.replaced.mkdir(exist_ok=True)
        for entry in self._entries():
            entry.rename(self.replaced / entry.name)

    def drop_replaced(self) -> None:
        """Remove the run that this one replaces, once this one has something to show."""
        shutil.rmtree(self.replaced, ignore_errors=True)

    def bring_back(self) -> None:
        """Put the replaced run back where the new one ended, or was killed, before its first checkpoint."""
        if not self.replaced.is_dir():
            return
        if not (self.checkpoint.is_dir() or self.posterior.exists()):
            with self.lock():
                for entry in self._entries():
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                for entry in self.replaced.iterdir():
                    entry.rename(self.path / entry.name)
        self.drop_replaced()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second process out of this folder; the lock goes with the process, however it ends.

        Raises:
            UsageError: if another process is at work here.
        """
        import fcntl

        with open(self.path / ".lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise UsageError(
                    f"{self.path} is in use by {owner}. Wait for it to end, or give another folder to -o."
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Append what the loggers `hetmodels` and `inference` say to run.log, with time and level; an error as well."""
        handler = logging.FileHandler(self.log, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        loggers = [logging.getLogger(name) for name in LOGGERS]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        try:
            yield
        except BaseException as error:
            record = logging.LogRecord("hetmodels", logging.ERROR, "", 0, "%s", (repr(error),), sys.exc_info())
            handler.handle(record)
            raise
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.removeHandler(handler)
                logger.setLevel(level)
            handler.close()

    @contextlib.contextmanager
    def tracing(self, keep: int = 0) -> Iterator["Trace"]:
        """The trace, open for new rows after its first `keep` rows; what follows them is dropped."""
        rows = self.trace.read_bytes().splitlines(keepends=True)[:keep] if self.trace.is_file() else []
        with replacing(self.trace) as temporary:
            temporary.write_bytes(b"".join(rows))
        with open(self.trace, "a", encoding="utf-8") as file:
            yield Trace(file)

    def read_trace(self) -> list[dict[str, Any]]:
        """All complete rows of the trace; a last row cut short by a kill is left out."""
        if not self.trace.is_file():
            return []
        lines = self.trace.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def merge_metrics(self, scores: Mapping[str, Any]) -> dict[str, Any]:
        """Add scores to metrics.json, replacing those of the same name; returns all that stand there now."""
        before = json.loads(self.metrics.read_text(encoding="utf-8")) if self.metrics.is_file() else {}
        merged = before | json.loads(to_json(scores))
        write_text(self.metrics, to_json(merged, indent=2) + "\n")
        return merged


class Trace:
    """An open trace: each row is on disk, as far as this process goes, when `append` returns."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        self._file.write(to_json(row) + "\n")
        self._file.flush()
