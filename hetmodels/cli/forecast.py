"""What a fit will take of memory, disk and time, before it is begun."""

import time
from typing import Any

from hetmodels.data.memory import predict_memory
from hetmodels.data.particles import Particles

PROGRAM = 450_000_000  # bytes of the program itself with its libraries and compiled steps
# Measured at 64 and 96 pixels with 1, 2 and 5 maps. A step takes this much per Fourier pixel and row of a batch, once
# and for each map; of an engine on gradients, which has no sums to keep, half of it. The sweep that ends a pass takes
# a multiple of the state, when the step's memory is free again.
PER_PIXEL, SWEEP = 300, 2.4
_MOST = 12  # maps written whatever the family, posterior included


def rows_per_step(engine: Any, particles: Particles) -> int:
    """Particles in a batch."""
    return len(particles) if engine.whole else min(engine.batch_size, len(particles))


def predicted_memory(family: Any, engine: Any, particles: Particles, halves: bool) -> dict[str, int]:
    """Bytes that a run takes, by purpose, and their `total`; pages of memory-mapped files not counted."""
    rows = rows_per_step(engine, particles)
    parts = predict_memory(particles, rows)
    parts |= {"program": PROGRAM, "state": state_bytes(family, engine, particles.size, halves)}
    parts["step"] = max(_step_bytes(family, engine, rows * particles.disc.pixels), int(SWEEP * parts["state"]))
    return parts | {"total": sum(value for name, value in parts.items() if name != "total")}


def _maps(family: Any) -> int:
    """How many maps a family has."""
    return getattr(family, "classes", None) or 1 + getattr(family, "dims", 0)


def _step_bytes(family: Any, engine: Any, pixels: int) -> int:
    """Bytes at work in a step on so many Fourier pixels of images."""
    own = getattr(family, "pixel_bytes", None)
    if own is not None:
        return pixels * own()
    return pixels * PER_PIXEL * (1 + _maps(family)) // (1 if hasattr(engine, "state_bytes") else 2)


def state_bytes(family: Any, engine: Any, size: int, halves: bool) -> int:
    """Bytes of an engine's state, as far as it can say, for a box of `size` pixels."""
    estimate = getattr(engine, "state_bytes", None)
    return 0 if estimate is None else int(estimate(family, size, halves))


def predicted_disk(family: Any, engine: Any, particles: Particles, halves: bool) -> int:
    """Bytes that a run writes at most: maps, tables, and two checkpoints while one replaces the other."""
    maps = 4 * particles.size**3 * (_MOST + 5 * _maps(family))
    return maps + 800 * len(particles) + 2 * state_bytes(family, engine, particles.size, halves)


def advice(parts: dict[str, int], limit: float, family: Any, engine: Any, particles: Particles, halves: bool) -> str:
    """Settings with which a run that takes these parts of memory would stay within the limit [bytes]."""
    fixed, rows = parts["program"] + parts["table"], rows_per_step(engine, particles)
    images, pixels = parts["reading"] + parts["batches"], particles.disc.pixels

    def needed(rows_: int, box: int) -> float:
        part, state = (box / particles.size) ** 2, state_bytes(family, engine, box, halves)
        step = _step_bytes(family, engine, int(rows_ * pixels * part))
        return fixed + images * part * rows_ / rows + state + max(step, SWEEP * state)

    sizes = [] if engine.whole else range(rows // 10 * 10 - 10, 10, -10)
    fewer = next((n for n in sizes if needed(n, particles.size) <= limit), None)
    smaller = next((box for box in range(particles.size // 2 * 2 - 2, 15, -2) if needed(rows, box) <= limit), None)
    found = [f"--set engine.batch_size={fewer}"] * (fewer is not None) + [f"--box {smaller}"] * (smaller is not None)
    if not found:
        return f"The program alone needs {parts['program'] / 1e9:.2f} GB: free some memory, or allow more by --memory."
    return f"{' or '.join(found)} would fit."


def measured_time(engine: Any, problem: Any, key: Any) -> dict[str, Any]:
    """Seconds of a run at most, from one compiled step and sweep on the data: `compilation`, `step`, `sweep`, `total`.

    Args:
        engine: the engine.
        problem: what it sees.
        key: random key.
    """
    import jax

    state = engine.init(key, problem)
    rows = problem.size if engine.whole else engine.batch_size
    steps = 1 if engine.whole else -(-problem.size // rows)
    batch = problem.whole() if engine.whole else next(iter(problem.batches(0, key, rows, engine.shuffle)))
    sweep = getattr(engine, "sweep", None)
    seconds: dict[str, list[float]] = {"step": [], "sweep": []}
    for _ in range(2):
        for name, work in {"step": engine.step, "sweep": sweep}.items():
            begun = time.perf_counter()
            if work is not None:
                state, _info = work(key, problem, state, batch) if name == "step" else work(key, problem, state)
                jax.block_until_ready([leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)])
            seconds[name].append(time.perf_counter() - begun)
    passes, (step, again) = engine.passes(problem), (seconds["step"][1], seconds["sweep"][1])
    first = seconds["step"][0] + seconds["sweep"][0]
    return {
        "passes": passes,
        "steps": passes * steps,
        "compilation": max(0.0, first - step - again),
        "step": step,
        "sweep": again,
        "total": passes * (steps * step + again),
    }
