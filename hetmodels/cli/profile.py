"""`hetmodels profile RUN -o DIR --along 1 / --maps A.mrc B.mrc …`: the free energy along a path of maps."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetmodels.cli.common import emit, json_option, new_folder, number
from hetmodels.cli.references import read_maps
from hetmodels.cli.run_folder import particles_of
from hetmodels.errors import UsageError
from hetmodels.run_directory import RunDirectory, write_text

if TYPE_CHECKING:
    import numpy as np

    from hetmodels.analysis.free_energy import Profile
    from hetmodels.analysis.mixtures import Mixture
    from hetmodels.data.particles import Particles
    from hetmodels.posterior import Posterior


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run_path", type=Path, metavar="RUN", help="folder of a run on the images, for their noise")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for profile.csv")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--along", type=number(int, 1), metavar="AXIS", help="along a latent axis, counted from 1")
    which.add_argument("--maps", type=Path, nargs="+", metavar="MAP.mrc", help="the maps of the path, in order")
    parser.add_argument("-n", type=number(int, 3), metavar="N", help="nodes along the axis (default 11)")
    parser.add_argument("--draws", type=number(int, 50), default=500, metavar="N", help="draws of each of 4 chains")
    parser.add_argument("--seed", type=number(int, 0), default=0, metavar="S", help="of the chains")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Score every image against every map of the path, sample the profile, write and print it."""
    import jax

    from hetmodels.posterior import Posterior

    if args.n is not None and args.along is None:
        raise UsageError("profile: -n is the number of nodes along an axis; it needs --along.")
    if args.maps and len(args.maps) < 3:
        raise UsageError(f"profile: a path has three maps at least, got {len(args.maps)}.")
    source = RunDirectory.open(args.run_path)
    if not source.posterior.is_file():
        raise UsageError(f"{source.path}: profile needs posterior.nc, which the run lacks. Did it end?")
    posterior, particles = Posterior.load(source.posterior), particles_of(source)
    names, maps = _path(posterior, particles, args)
    scores = _scores(posterior, particles, maps)
    from hetmodels.analysis.free_energy import Profile, path_model
    from hetmodels.analysis.mixtures import mixture_weights
    from inference.diagnostics import warnings
    from inference.profiles import path_posterior

    drawn = path_posterior(path_model, scores, key=jax.random.key(args.seed), draws=args.draws, warmup=args.draws)
    folder = new_folder(args.output, args.overwrite)
    facts = _facts(names, Profile.of(drawn), mixture_weights(scores)) | {"doubts": warnings(drawn)}
    rows = zip(*(facts[name] for name in ("node", "median", "low", "high", "weight")), strict=True)
    lines = ["node,free_energy_kt,low_5,high_95,weight", *(",".join(map(str, row)) for row in rows)]
    write_text(folder / "profile.csv", "\n".join(lines) + "\n")
    emit(args, facts | {"folder": folder}, _words(facts, len(scores), folder))
    return 0


def _path(posterior: "Posterior", particles: "Particles", args: argparse.Namespace) -> tuple[list[str], "np.ndarray"]:
    """Names and maps of the nodes, in the box and grey scale of the images."""
    import numpy as np

    if args.along:
        from hetmodels.cli.volumes import points_along

        if not posterior.local or not posterior.local["mean"].shape[1]:
            raise UsageError(f"{args.run_path}: --along needs continuous latents, which the run has not; give --maps.")
        if (dims := posterior.local["mean"].shape[1]) > 1:
            raise UsageError(
                f"{args.run_path}: --along needs one latent and the run has {dims}: images away from the axis would be "
                "counted at places on it. analyze shows their landscape; --maps takes a path of your own."
            )
        points = points_along(posterior, args.along, args.n or 11)
        return list(points), np.stack([posterior.map_at(z) for z in points.values()])
    return [path.name for path in args.maps], read_maps(args.maps, particles)[0]


def _scores(posterior: "Posterior", particles: "Particles", maps: "np.ndarray") -> "np.ndarray":
    """log p(y_i | x_m), the contrast integrated as in the run, (particles, nodes)."""
    from hetmodels.analysis.free_energy import path_likelihood
    from inference.weighted import Reconstruction, contrast_of

    Reconstruction.of(posterior, particles)  # refuses other particles, and poses that the run has inferred
    noise = posterior.value("noise")
    noise = noise.reshape(-1, particles.groups, noise.shape[-1]).mean(0)  # of half sets
    return path_likelihood(maps, particles, noise, contrast_of(posterior))


def _facts(names: list[str], profile: "Profile", mixture: "Mixture") -> dict[str, Any]:
    import numpy as np

    low, high = profile.band()
    median = profile.median
    first, second = sorted(np.argsort(median)[:2].tolist())
    barrier = np.quantile(profile.barrier(first, second), [0.05, 0.5, 0.95])
    return {
        "node": names,
        "median": median.round(3).tolist(),
        "low": low.round(3).tolist(),
        "high": high.round(3).tolist(),
        "weight": mixture.weights.round(6).tolist(),
        "gap": mixture.gap,
        "wells": [names[first], names[second]],
        "barrier": barrier.round(3).tolist(),
    }


def _words(facts: dict[str, Any], count: int, folder: Path) -> str:
    wide = max(map(len, facts["node"]))
    rows = zip(*(facts[name] for name in ("node", "median", "low", "high", "weight")), strict=True)
    low, median, high = facts["barrier"]
    return "\n".join(
        [
            f"free energy of {count} images along {len(facts['node'])} maps, kT above the lowest node, with 90 % bands",
            f"{'node':<{wide}}  median      low     high  weight",
            *(f"{n:<{wide}}{m:8.2f}{a:9.2f}{b:9.2f}{w:8.4f}" for n, m, a, b, w in rows),
            f"between the two lowest, {facts['wells'][0]} and {facts['wells'][1]}: {median:.2f} kT above the first "
            f"({low:.2f} to {high:.2f})",
            f"weights: the most likely ones without a prior, within {facts['gap']:.1g} nats per image of the best",
            *facts["doubts"],
            f"written to {folder / 'profile.csv'}",
        ]
    )
