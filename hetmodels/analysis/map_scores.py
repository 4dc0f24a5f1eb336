"""How well the maps that a run gives its particles agree with their true maps."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from hetmodels.analysis import fourier, masks, metrics
from hetmodels.analysis.alignment import Alignment, align
from hetmodels.analysis.particle_maps import CONSENSUS, ParticleMaps
from hetmodels.analysis.rows import Rows
from hetmodels.analysis.scores import Score
from hetmodels.data.maps import Map, read_map
from hetmodels.errors import DataError
from hetmodels.run_directory import RunDirectory

IMAGES = 200  # particles whose own maps are compared, where latents are continuous
MAPS = 16  # maps kept in memory

Load = Callable[[int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Frame:
    """The common box of all maps compared, reached by Fourier crop; voxel size in Å."""

    size: int
    spacing: float

    @classmethod
    def of(cls, maps: Mapping[str, Map]) -> "Frame":
        """The smallest box among some maps, by the names that errors give them.

        Raises:
            DataError: if a map does not state its voxel size.
        """
        for name, found in maps.items():
            if found.spacing <= 0:
                raise DataError(
                    f"{name}: the voxel size is missing in the header. Set it, for example with relion_image_handler."
                )
        return cls(*min((len(found.values), found.spacing) for found in maps.values()))

    def fitted(self, found: Map, name: str) -> np.ndarray:
        """A map in this frame.

        Raises:
            DataError: if the map is no cube or covers another extent.
        """
        fourier.check_map(found.values, name)
        extent, expected = len(found.values) * found.spacing, self.size * self.spacing
        if abs(extent - expected) > 0.005 * expected:
            raise DataError(
                f"{name}: all maps must cover the same extent, this one {extent:.2f} Å ({len(found.values)} voxels of "
                f"{found.spacing:.4f} Å), the others {expected:.2f} Å ({self.size} voxels of {self.spacing:.4f} Å)."
            )
        return fourier.crop(found.values, self.size)


@dataclasses.dataclass(frozen=True, eq=False)
class MapScores:
    """The maps of a run and of the truth, brought into one frame.

    Attributes:
        run: the run.
        found: its maps.
        rows: its particle table.
        truth: folder of the true maps.
        states: true state of each particle.
        scored: particles whose maps are compared.
        frame: the common box.
        weights: mask of all comparisons, or None.
        move: what brings the run's maps onto the true ones, or None.
    """

    run: RunDirectory
    found: ParticleMaps
    rows: Rows
    truth: Path
    states: np.ndarray
    scored: np.ndarray
    frame: Frame
    weights: np.ndarray | None = None
    move: Alignment | None = None

    @classmethod
    def of(
        cls,
        run: RunDirectory,
        found: ParticleMaps,
        rows: Rows,
        truth: Path,
        states: np.ndarray,
        mask: Path | None,
        aligned: bool,
        notes: list[str],
    ) -> "MapScores":
        """Choose the particles and the frame; align if asked.

        Raises:
            DataError: if maps are missing or do not fit together.
        """
        if rows.numbered("hetLatent") is not None and not found.continuous and not np.any(found.numbers != CONSENSUS):
            notes.append("fsc_auc_per_image: the consensus map stands for every particle, whatever its latents.")
        scored = _scored(found, states, notes)
        path, first = _state(truth, int(states[scored][0])), int(found.numbers[scored][0])
        frame = Frame.of({str(path): read_map(path), "the run's maps": found.read(first)})
        weights = None if mask is None else masks.from_file(mask, frame.size, frame.spacing)
        plain = cls(run, found, rows, truth, states, scored, frame, weights)
        if not aligned:
            return plain
        move = align(plain.consensus, plain.true_mean, frame.spacing, hands=True)
        notes.append(_describe(move))
        return dataclasses.replace(plain, move=move)

    @cached_property
    def true_map(self) -> Load:
        """The map of a true state."""
        return lambda state: self.frame.fitted(read_map(_state(self.truth, state)), str(_state(self.truth, state)))

    @cached_property
    def true_mean(self) -> np.ndarray:
        """Mean of the true maps over the particles compared."""
        return self._mean(self.true_map, self.states[self.scored])

    def own_map(self, number: int) -> np.ndarray:
        """A map of the run as it is."""
        return self.frame.fitted(self.found.read(number), f"map {number} of the run")

    @cached_property
    def consensus(self) -> np.ndarray:
        """The run's consensus map, else the mean of the particles' maps."""
        if self.run.map.is_file():
            return self.frame.fitted(read_map(self.run.map), str(self.run.map))
        return self._mean(self.own_map, self.found.numbers[self.scored])

    def _mean(self, load: Load, numbers: np.ndarray) -> np.ndarray:
        mean = np.zeros((self.frame.size,) * 3, np.float32)
        for number, count in zip(*np.unique(numbers, return_counts=True), strict=True):
            mean += np.float32(count / len(numbers)) * load(int(number))
        return mean

    @cached_property
    def run_map(self) -> Load:
        """A map of the run, moved onto the truth if it is aligned."""

        @lru_cache(maxsize=MAPS)
        def load(number: int) -> np.ndarray:
            values = self.consensus if number == CONSENSUS else self.own_map(number)
            return values if self.move is None else self.move.apply(values, self.frame.spacing)

        return load

    def compare(
        self, load: Load, numbers: np.ndarray, states: np.ndarray, mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """FSC area and resolution of maps with the maps of states; see `metrics.pair_scores`."""
        pairs = np.stack([numbers, states], axis=1)
        return metrics.pair_scores(load, self.true_map, pairs, self.frame.spacing, mask)

    def scores(self) -> list[Score]:
        """Per image, per conformation and, unless a mask was given, inside a mask made from the true mean map."""
        numbers, states = self.found.numbers[self.scored], self.states[self.scored]
        areas, resolutions = self.compare(self.run_map, numbers, states, self.weights)
        limit = self.frame.size * self.frame.spacing / ((self.frame.size - 1) // 2)
        words = "mean area under the FSC of each image's map with its true map; floor: the consensus map"
        per_image = self._with_bounds("fsc_auc_per_image", areas, words, states, self.weights)
        mean = float(self.compare(lambda _: self.true_mean, np.zeros_like(states), states, self.weights)[0].mean())
        words = "median resolution [Å] where the FSC of an image's map with its true map falls below 0.5"
        found = [
            per_image,
            Score("fsc_auc_true_mean", mean, "the same if every image had the true mean map"),
            self._per_conformation(),
            Score("resolution_05", float(np.median(resolutions)), words, None, limit),
        ]
        if self.weights is None:
            found[2:2] = self._masked(numbers, states)
        return found

    def _with_bounds(
        self, name: str, areas: np.ndarray, words: str, states: np.ndarray, mask: np.ndarray | None
    ) -> Score:
        """The mean of some areas between those of the consensus map and of the truth."""
        floor = self.compare(self.run_map, np.full_like(states, CONSENSUS), states, mask)[0].mean()
        ceiling = self.compare(self.true_map, states, states, mask)[0].mean()
        return Score(name, float(areas.mean()), words, float(floor), float(ceiling))

    def _masked(self, numbers: np.ndarray, states: np.ndarray) -> list[Score]:
        mask = masks.from_map(self.true_mean, self.frame.spacing)
        areas = self.compare(self.run_map, numbers, states, mask)[0]
        mean = float(self.compare(lambda _: self.true_mean, np.zeros_like(states), states, mask)[0].mean())
        words = "fsc_auc_per_image inside a mask made from the true mean map"
        return [
            self._with_bounds("fsc_auc_masked", areas, words, states, mask),
            Score("fsc_auc_masked_true_mean", mean, "the same if every image had the true mean map"),
        ]

    def _per_conformation(self) -> Score:
        """The map at the particle nearest to the mean latent of a state, or of its most frequent class."""
        states = np.unique(self.states)
        if len(states) > IMAGES:
            states = states[np.linspace(0, len(states) - 1, IMAGES).astype(int)]
        chosen = np.array([self._representative(np.flatnonzero(self.states == s)) for s in states])
        areas = self.compare(self.run_map, chosen, states, self.weights)[0]
        words = "mean over true states of the FSC area of the run's map for the state"
        return self._with_bounds("fsc_auc_per_conformation", areas, words, states, self.weights)

    def _representative(self, members: np.ndarray) -> int:
        mean = self.rows.numbered("hetLatent")
        if not self.found.continuous or mean is None:
            values, counts = np.unique(self.found.numbers[members], return_counts=True)
            return int(values[counts.argmax()])
        nearest = ((mean - mean[members].mean(0)) ** 2).sum(1).argmin()
        return int(self.found.numbers[nearest])


def _state(truth: Path, state: int) -> Path:
    return truth / f"state_{state:03d}.mrc"


def _scored(found: ParticleMaps, states: np.ndarray, notes: list[str]) -> np.ndarray:
    """Rows whose maps are compared: all, or where each has a map of its own, some spread evenly over the states."""
    if not found.continuous or len(states) <= IMAGES:
        return np.arange(len(states))
    notes.append(f"fsc_auc_per_image, resolution_05: of {IMAGES} particles in proportion to the states.")
    order = np.argsort(states, kind="stable")
    return np.sort(order[np.linspace(0, len(states) - 1, IMAGES).astype(int)])


def _describe(move: Alignment) -> str:
    angle = np.degrees(Rotation.from_matrix(move.rotation).magnitude())
    hand = "other" if move.mirrored else "same"
    return (
        f"maps were aligned to the truth: {angle:.2f}°, {np.linalg.norm(move.shift):.2f} Å, {hand} hand, "
        f"correlation {move.correlation:.3f} (the opposite hand {move.other:.3f})."
    )
