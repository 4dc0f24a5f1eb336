"""Images per second from an MRC stack to whitened batches, and the anonymous memory this takes.

    python benchmarks/data_throughput.py --count 10000 --box 64

makes a synthetic stack in a temporary folder and prints one JSON line per stage: `read` (pixels), `coefficients`
(read and Fourier transform), `first pass` and `second pass` of batches, streamed and with coefficients kept in
memory. Times exclude compilation; memory is the peak of RssAnon, which leaves out memory-mapped pixels.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import mrcfile
import numpy as np

from hetmodels.data.fields import Metadata
from hetmodels.data.memory import predict_memory
from hetmodels.data.packed import Loading
from hetmodels.data.particles import Particles
from hetmodels.data.views import Microscope, random_views


def anonymous() -> int:
    """Anonymous memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon; this script needs Linux.")


class Peak:
    """Largest anonymous memory seen inside a `with` block, and that at its start."""

    def __enter__(self) -> "Peak":
        self.start = self.bytes = anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, anonymous())

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def write_stack(path: Path, count: int, box: int) -> None:
    """A stack of white noise; one block of images is written again and again."""
    block = np.random.default_rng(0).normal(size=(min(count, 1000), box, box)).astype(np.float32)
    with mrcfile.new_mmap(path, (count, box, box), mrc_mode=2) as file:
        for start in range(0, count, len(block)):
            file.data[start : start + len(block)] = block[: count - start]


def opened(folder: Path, count: int, loading: Loading) -> Particles:
    """The stack as a particle set with random poses and defoci."""
    views = random_views(np.random.default_rng(1), count, Microscope(), shift_sd=3.0)
    metadata = Metadata(
        path=folder / "table.star",
        kind="synthetic",
        stack=np.array(["stack.mrcs"] * count, object),
        row=np.arange(count),
        rotation=views.rotation,
        shift=views.shift,
        pixel=np.full(count, 2.0),
        group=np.zeros(count, np.int32),
        ctf=views.ctf,
        micrograph=views.micrograph,
    )
    return Particles.from_metadata(metadata, loading=loading)


def measure(stage: str, count: int, work: Callable[[], object], **facts: object) -> None:
    """Run and print one line."""
    with Peak() as peak:
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
    line = {"stage": stage, "images": count, "seconds": round(seconds, 4), "images_per_s": round(count / seconds)}
    print(json.dumps(line | {"peak_anonymous_mb": peak.bytes >> 20, "start_mb": peak.start >> 20} | facts), flush=True)


def exhaust(values: Iterable[object]) -> None:
    """Make all values and keep none."""
    for _ in values:
        pass


def consume(particles: Particles, rows: int) -> None:
    """One pass over all particles in file order."""
    for batch in particles.batches(np.arange(len(particles)), rows):
        batch.images.block_until_ready()


def main() -> None:
    """Measure every stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="images")
    parser.add_argument("--box", type=int, default=64, help="pixels along an edge")
    parser.add_argument("--rows", type=int, default=500, help="images in a batch")
    parser.add_argument("--cache", type=int, default=1 << 30, help="bytes of coefficients that may stay in memory")
    args = parser.parse_args()
    chunks = np.array_split(np.arange(args.count), max(1, args.count // args.rows))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_stack(folder / "stack.mrcs", args.count, args.box)
        sets: list[Particles] = []
        measure("open", args.count, lambda: sets.append(opened(folder, args.count, Loading(cache=0))))
        particles = sets[0]
        measure("read", args.count, lambda: exhaust(map(particles.images, chunks)))
        measure("coefficients", args.count, lambda: exhaust(map(particles.coefficients, chunks)))
        measure("reference spectrum", args.count, lambda: particles.reference)
        measure("data hash", args.count, lambda: particles.data_hash)
        consume(particles.subset(np.arange(args.rows)), args.rows)  # compiles
        for kind in (particles, particles.with_loading(Loading(cache=args.cache))):
            label = "resident" if kind.resident else "streamed"
            predicted = predict_memory(kind, args.rows)["total"] >> 20
            for turn in ("first", "second"):
                measure(f"{turn} pass, {label}", args.count, lambda: consume(kind, args.rows), predicted_mb=predicted)  # noqa: B023


if __name__ == "__main__":
    main()
