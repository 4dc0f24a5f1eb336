"""What a fit will take of memory, disk and time, before it is begun."""

import time
from typing import Any

from hetmodels.data.memory import predict_memory
from hetmodels.data.particles import Particles

PROGRAM = 450_000_000  # bytes of the program itself with its libraries and compiled steps
PER_PIXEL = 400  # bytes per Fourier pixel and row of a batch while a step is computed
_MAPS = 12  # maps written whatever the family, posterior included


def rows_per_step(engine: Any, particles: Particles) -> int:
    """Particles in a batch."""
    return len(particles) if engine.whole else min(engine.batch_size, len(particles))


def predicted_memory(family: Any, engine: Any, particles: Particles, halves: bool) -> dict[str, int]:
    """Bytes that a run takes, by purpose, and their `total`; pages of memory-mapped files not counted."""
    rows = rows_per_step(engine, particles)
    parts = predict_memory(particles, rows)
    parts |= {"program": PROGRAM, "state": state_bytes(family, engine, particles.size, halves)}
    parts["step"] = rows * particles.disc.pixels * PER_PIXEL
    return parts | {"total": sum(value for name, value in parts.items() if name != "total")}


def state_bytes(family: Any, engine: Any, size: int, halves: bool) -> int:
    """Bytes of an engine's state, as far as it can say, for a box of `size` pixels."""
    estimate = getattr(engine, "state_bytes", None)
    return 0 if estimate is None else int(estimate(family, size, halves))


def predicted_disk(family: Any, engine: Any, particles: Particles, halves: bool) -> int:
    """Bytes that a run writes at most: maps, tables, and two checkpoints while one replaces the other."""
    count = getattr(family, "classes", None) or 1 + getattr(family, "dims", 0)
    maps = 4 * particles.size**3 * (_MAPS + 5 * count)
    return maps + 800 * len(particles) + 2 * state_bytes(family, engine, particles.size, halves)


def advice(parts: dict[str, int], limit: float, family: Any, engine: Any, particles: Particles, halves: bool) -> str:
    """Settings with which a run that takes these parts of memory would stay within the limit [bytes]."""
    per_row = (parts["batches"] + parts["step"]) / rows_per_step(engine, particles)
    rows = int((limit - parts["total"] + parts["batches"] + parts["step"]) / per_row)
    found = []
    if not engine.whole and rows >= 20:
        found.append(f"--set engine.batch_size={rows // 10 * 10}")
    fixed = parts["program"] + parts["table"]
    for box in range(particles.size // 2 * 2 - 2, 15, -2):
        part = (box / particles.size) ** 2
        images = part * (parts["reading"] + parts["batches"] + parts["step"])
        if fixed + images + state_bytes(family, engine, box, halves) <= limit:
            found.append(f"--box {box}")
            break
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
