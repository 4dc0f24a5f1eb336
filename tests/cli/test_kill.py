"""A run that is killed and resumed ends with the same files, bit for bit, as one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hetmodels.cli import main

OPTIONS = "--set engine.iterations=4 --set engine.batch_size=40 --checkpoint-every 0 --contrast 0.2".split()

ENVIRONMENT = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # many starts of the same programs


class Run:
    """A fit in a process of its own."""

    def __init__(self, star: Path, folder: Path) -> None:
        self.star, self.folder = star, folder

    def start(self, *more: str) -> subprocess.Popen:
        """Begin, with standard output and error in files beside the folder."""
        words = [sys.executable, "-m", "hetmodels.cli", "fit", str(self.star), "-o", str(self.folder), *OPTIONS, *more]
        with open(self.folder.with_suffix(".err"), "w", encoding="utf-8") as errors:
            return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors, env=ENVIRONMENT)

    def finish(self, *more: str) -> None:
        """Run to the end."""
        assert self.start(*more).wait() == 0, self.folder.with_suffix(".err").read_text()

    def kill(self, wait: float, *more: str) -> None:
        """Begin, and kill some seconds after there is a config.toml."""
        process = self.start(*more)
        self._until(process, (self.folder / "config.toml").exists)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def kill_at_work(self, checkpoints: int, wait: float, *more: str) -> None:
        """Begin, and kill some seconds after it has written that many checkpoints, seen at least."""
        process, seen = self.start(*more), {self._checkpoint()}
        self._until(process, lambda: seen.add(self._checkpoint()) or len(seen) > checkpoints)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run was too short for this test"

    def _checkpoint(self) -> int:
        file = self.folder / "checkpoint" / "state.npz"
        return file.stat().st_mtime_ns if file.exists() else 0

    def _until(self, process: subprocess.Popen, happened: Callable[[], bool]) -> None:
        while not happened() and process.poll() is None:
            time.sleep(0.001)

    def results(self) -> dict[str, bytes]:
        """The maps and the table."""
        files = [*sorted((self.folder / "volumes").iterdir()), self.folder / "particles.star"]
        return {file.name: file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    path = tmp_path_factory.mktemp("kill") / "a.star"
    words = f"simulate {path} --phantom 1 -n 240 --box 16 --pixel 12 --snr 0.3 --contrast-sd 0.2 --json"
    assert main(words.split()) == 0
    return path


@pytest.fixture(scope="module")
def undisturbed(star):
    """The results of an uninterrupted run."""
    run = Run(star, star.parent / "undisturbed")
    run.finish()
    return run.results()


def equal(run, expected):
    found = run.results()
    assert sorted(found) == sorted(expected)  # and so no temporary files
    assert not [name for name in expected if found[name] != expected[name]]


def test_a_run_killed_three_times_ends_as_if_nothing_had_been(star, undisturbed):
    run, rng = Run(star, star.parent / "thrice"), random.Random(1)
    for number in range(3):
        run.kill_at_work(rng.randint(1, 6), rng.uniform(0, 0.05), *(["--resume"] if number else []))
    run.finish("--resume")
    equal(run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_a_run_killed_at_any_moment_ends_as_if_nothing_had_been(star, undisturbed, number):
    run, rng = Run(star, star.parent / f"killed{number}"), random.Random(number)
    begun = (star.parent / "undisturbed" / "config.toml").stat().st_mtime
    seconds = (star.parent / "undisturbed" / "metrics.json").stat().st_mtime - begun
    run.kill(seconds * rng.uniform(0, 1.05))
    run.finish("--resume")
    equal(run, undisturbed)
