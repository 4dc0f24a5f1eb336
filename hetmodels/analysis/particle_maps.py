"""The maps of a run by number, and which of them is the map of each particle."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hetmodels.analysis.masks import cosine_edge
from hetmodels.analysis.rows import Rows
from hetmodels.data.maps import Map, read_map
from hetmodels.errors import DataError
from hetmodels.posterior import Posterior
from hetmodels.run_directory import RunDirectory

CONSENSUS = 0


@dataclasses.dataclass(frozen=True, eq=False)
class ParticleMaps:
    """Maps by number: 0 is common to all particles, classes count from 1; with continuous latents row i has map i + 1.

    Attributes:
        numbers: number of the map of each particle, (particles,).
        read: gives a map by its number.
        continuous: whether each particle has a map of its own.
        classes: numbers of the class maps.
        posterior: where the maps are from; None if from files.
    """

    numbers: np.ndarray
    read: Callable[[int], Map]
    continuous: bool = False
    classes: tuple[int, ...] = ()
    posterior: Posterior | None = None


def particle_maps(run: RunDirectory, rows: Rows | None = None) -> ParticleMaps:
    """The maps of a run: of its posterior if there is one, else those in its folder of volumes.

    Args:
        run: the run.
        rows: its particle table, read if None.

    Raises:
        DataError: if files are missing or do not belong together.
    """
    rows = Rows.read(run.particles) if rows is None else rows
    if not run.posterior.is_file():
        return _from_files(run, rows)
    posterior = Posterior.load(run.posterior)
    if posterior.particles != len(rows.table):
        raise DataError(
            f"{run.path}: posterior.nc and particles.star must be of the same particles, found {posterior.particles} "
            f"and {len(rows.table)}. Restore the table that the fit wrote."
        )
    return from_posterior(posterior)


def from_posterior(posterior: Posterior) -> ParticleMaps:
    """The maps of a posterior: at a particle's mean latent, of its most probable class, or the one map there is."""
    family, local = posterior.family, posterior.local
    count = posterior.particles
    if local["mean"].shape[1]:
        numbers = np.arange(count) + 1
        own = lambda number: map_at(posterior, posterior.latent_of(number - 1))  # noqa: E731
        return ParticleMaps(numbers, own, True, posterior=posterior)
    if not hasattr(family, "grids"):
        return ParticleMaps(np.full(count, CONSENSUS), lambda number: map_at(posterior, None), posterior=posterior)
    nodes = family.grids(posterior.first())[0]
    classes = tuple(range(1, len(nodes) + 1))
    best = local["responsibilities"].argmax(1) + 1
    return ParticleMaps(best, lambda number: map_at(posterior, nodes[number - 1]), False, classes, posterior)


def map_at(posterior: Posterior, z: Any) -> Map:
    """The map at a latent, in the box of the data, as it is written to files: the solvent at zero."""
    return Map(solvent_zero(posterior.map_at(z)), posterior.box()[1], np.zeros(3))


def solvent_zero(values: np.ndarray) -> np.ndarray:
    """The map with zero mean in the solvent, cut to the sphere inscribed in the box.

    The images do not contain the map's mean, and nothing turns into view outside the sphere but noise.
    """
    size = values.shape[-1]
    line = np.arange(size) - size // 2
    radius = np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2)
    outside = (radius > 0.42 * size) & (radius < 0.5 * size)
    return ((values - values[outside].mean()) * cosine_edge(radius - (0.5 * size - 3), 3.0)).astype(np.float32)


def _from_files(run: RunDirectory, rows: Rows) -> ParticleMaps:
    """The map of its most probable class for each particle, else the consensus map."""
    numbers = np.full(len(rows.table), CONSENSUS)
    found = rows.numbers("hetClass")
    if found is not None and (np.ptp(found) > 0 or run.class_map(int(found[0])).is_file()):
        numbers = found.astype(int)

    def path(number: int) -> Path:
        return run.map if number == CONSENSUS else run.class_map(number)

    for number in np.unique(numbers).tolist():
        if not path(number).is_file():
            raise DataError(f"{path(number)}: this map of the run is missing. Did the fit end?")
    classes = tuple(int(file.stem[6:]) for file in sorted(run.volumes.glob("class_[0-9]*.mrc")))
    return ParticleMaps(numbers, lambda number: read_map(path(number)), False, classes)
