"""A ChimeraX script that films a series of maps."""

FRAMES, TURN, RATE = 8, 120, 25  # frames of each map, of a full turn at each end, and per second


def movie(names: list[str], level: float, output: str = "volumes.mp4") -> str:
    """Opens the maps, turns the first once, goes to the last and back, and writes a film.

    Args:
        names: files of the maps, at least one, in order.
        level: density at which they are drawn.
        output: the film, beside the maps.
    """
    every = f"#1-{len(names)}" if len(names) > 1 else "#1"
    order = [*range(1, len(names) + 1), *range(len(names) - 1, 0, -1)]
    lines = [
        *(f"open {name}" for name in names),
        f"volume {every} level {level:.4g} step 1 color #6ea6dc",
        "set bgColor white",
        "lighting soft",
        f"hide {every} models",
        "show #1 models",
        "view",
        "movie record",
        f"turn y 3 {TURN}",
        f"wait {TURN}",
    ]
    for before, number in zip([1, *order], order, strict=False):
        lines += [f"hide #{before} models", f"show #{number} models", f"wait {FRAMES}"]
    return "\n".join([*lines, f"movie encode {output} framerate {RATE}"]) + "\n"
