"""What the benchmarks share: a record per measurement, and the simulated sets they run on."""

import datetime
import json
import platform
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results.jsonl"


def record(benchmark, **figures):
    """Append one measurement to results.jsonl and print it."""
    row = {"benchmark": benchmark, "date": datetime.date.today().isoformat(), "machine": machine(), **figures}
    line = json.dumps(row)
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line, flush=True)


def machine():
    """Processor and number of CPUs this process may use."""
    import os

    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} CPUs"


@contextmanager
def timed():
    """Wall and CPU seconds of a block, in a dict that is filled when it ends."""
    spent = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield spent
    spent |= {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def simulate(folder, *options):
    """A simulated set in the folder; returns the star file."""
    star = Path(folder) / "set.star"
    if not star.exists():
        words = ["simulate", str(star), *options]
        subprocess.run([sys.executable, "-m", "hetmodels.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return star


def child(words, folder):
    """Run a program in a folder; wall and CPU seconds of the child."""
    import resource

    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": time.perf_counter() - wall, "cpu_s": cpu}


def truth_fsc(found, truth):
    """Fourier shell correlation, shells round(|k|)."""
    size = truth.shape[-1]
    a, b = np.fft.fftn(found), np.fft.fftn(truth)
    line = np.fft.fftfreq(size, 1 / size)
    shell = np.rint(np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2)).astype(int).ravel()

    def total(x):
        return np.bincount(shell, x.ravel())[: size // 2]

    return total((a.conj() * b).real) / np.sqrt(total(np.abs(a) ** 2) * total(np.abs(b) ** 2))
