"""Score a run against the known truth of a simulation; every score comes with its floor and its ceiling."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from hetmodels.analysis import fourier, fsc, masks, metrics
from hetmodels.analysis.alignment import Alignment, align
from hetmodels.analysis.particle_maps import CONSENSUS, ParticleMaps, particle_maps
from hetmodels.analysis.rows import Rows, matching_rows
from hetmodels.data.maps import Map, read_map
from hetmodels.errors import DataError
from hetmodels.run_directory import RunDirectory

NAMES = (
    "ari",
    "fsc_auc_per_image",
    "fsc_auc_floor",
    "fsc_auc_ceiling",
    "latent_spearman",
    "coverage_50",
    "coverage_90",
    "rotation_error_deg",
    "resolution_0143",
    "resolution_05",
)
IMAGES = 200  # particles whose own maps are compared, where latents are continuous
MAPS = 16  # maps kept in memory
NEIGHBOURS, NEIGHBOUR_POINTS = 0.01, 5000


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of the evaluation.

    Attributes:
        name: as in metrics.json.
        value: the number.
        words: what it is.
        floor: what the consensus map, or chance, gives; None where there is none.
        ceiling: what the truth itself gives.
    """

    name: str
    value: float
    words: str
    floor: float | None = None
    ceiling: float | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All scores of a run, the sentences on what could not be scored, and the frame in which maps were compared."""

    scores: tuple[Score, ...]
    notes: tuple[str, ...]
    particles: int
    states: int
    size: int
    spacing: float

    def values(self) -> dict[str, float | None]:
        """The scores by name; the agreed names are all there, None where one does not apply."""
        found: dict[str, float | None] = {s.name: s.value for s in self.scores}
        for s in self.scores:
            if s.name == "fsc_auc_per_image":
                found |= {"fsc_auc_floor": s.floor, "fsc_auc_ceiling": s.ceiling}
        return {name: found.get(name) for name in (*NAMES, *(n for n in found if n not in NAMES))}


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


def evaluate(run: RunDirectory, truth: Path, mask: Path | None = None, *, aligned: bool = False) -> Evaluation:
    """Compare a run with the truth of its simulation.

    Args:
        run: the run.
        truth: folder with truth.star and state_001.mrc, ….
        mask: map of weights for all map comparisons.
        aligned: bring the run's maps onto the true ones by rotation, shift and hand first.

    Raises:
        DataError: if files are missing or do not fit together.
    """
    rows, true = Rows.read(run.particles), Rows.read(Path(truth) / "truth.star")
    where = matching_rows(rows, true)
    states = true.required("hetTrueState")[where].astype(int)
    notes: list[str] = []
    scores = [*_class_scores(rows, states, notes), *_latent_scores(rows, true, where, notes)]
    scores += _pose_scores(rows, true, where, aligned, notes)
    frame, found = _map_scores(run, rows, Path(truth), states, mask, aligned, notes)
    return Evaluation((*found, *scores), tuple(notes), len(states), len(np.unique(states)), frame.size, frame.spacing)


def _class_scores(rows: Rows, states: np.ndarray, notes: list[str]) -> list[Score]:
    classes = rows.numbers("hetClass")
    if classes is None:
        notes.append("ari: the run has no classes (_hetClass).")
        return []
    if len(np.unique(states)) < 2:
        notes.append("ari: the truth has a single state.")
        return []
    _, kept = metrics.match_classes(classes.astype(int), states)
    largest = np.bincount(states).max() / len(states)
    return [
        Score("ari", metrics.ari(classes, states), "adjusted Rand index of classes and true states", 0.0, 1.0),
        Score("class_accuracy", kept, "particles in the class matched with their state", largest, 1.0),
    ]


def _latent_scores(rows: Rows, true: Rows, where: np.ndarray, notes: list[str]) -> list[Score]:
    mean, sd, known = rows.numbered("hetLatent"), rows.numbered("hetLatentSd"), true.numbered("hetTrueLatent")
    if mean is None or known is None:
        whose = "the run has no latents (_hetLatent1)" if mean is None else "the truth has none (_hetTrueLatent1)"
        notes.append(f"latent_spearman, coverage: {whose}.")
        return []
    known = known[where]
    known = known[:, np.ptp(known, axis=0) > 0]
    if not known.shape[1]:
        notes.append("latent_spearman, coverage: the true latents do not vary.")
        return []
    ranks = float(np.mean([metrics.latent_spearman(axis, mean) for axis in known.T]))
    scores = [Score("latent_spearman", ranks, "rank correlation of true and inferred coordinates", 0.0, 1.0)]
    some = slice(None, None, -(-len(mean) // NEIGHBOUR_POINTS))
    count = len(mean[some])
    k = max(int(NEIGHBOURS * count), 1)
    near = metrics.neighbourhood_similarity(known[some], mean[some], k)
    words = f"share of the {k} nearest neighbours in common"
    scores.append(Score("neighbourhood_similarity", near, words, k / count, (k + 1) / k))
    if sd is None or sd.shape != mean.shape:
        notes.append("coverage: the run gives no standard deviations of its latents (_hetLatentSd1).")
        return scores
    located = [metrics.in_true_gauge(axis, mean, sd) for axis in known.T]
    for level in (0.5, 0.9):
        share = float(np.mean([metrics.coverage(t, m, s, level) for t, (m, s) in zip(known.T, located, strict=True)]))
        words = f"true coordinates inside their {level:.0%} interval; {level:g} is right"
        scores.append(Score(f"coverage_{level * 100:.0f}", share, words))
    return scores


def _pose_scores(rows: Rows, true: Rows, where: np.ndarray, aligned: bool, notes: list[str]) -> list[Score]:
    estimated, known = rows.rotation(), true.rotation()
    if estimated is None or known is None:
        notes.append("rotation_error_deg: Euler angles are missing in the run or in the truth.")
        return []
    errors, _, _ = metrics.rotation_errors(estimated, known[where], hands=aligned)
    words = "median angle [°] to the true pose, one global rotation removed"
    return [Score("rotation_error_deg", float(np.degrees(np.median(errors))), words, None, 0.0)]


def _map_scores(
    run: RunDirectory, rows: Rows, truth: Path, states: np.ndarray, mask: Path | None, aligned: bool, notes: list[str]
) -> tuple[Frame, list[Score]]:
    found = particle_maps(run, rows)
    if rows.numbered("hetLatent") is not None and not found.continuous and not np.any(found.numbers != CONSENSUS):
        notes.append("fsc_auc_per_image: the consensus map stands for every particle, whatever its latents.")
    scored = _scored(found, states, notes)
    numbers, states = found.numbers[scored], states[scored]
    present = np.unique(states).tolist()
    paths = {s: truth / f"state_{s:03d}.mrc" for s in present}
    first = int(numbers[0])
    frame = Frame.of({str(paths[present[0]]): read_map(paths[present[0]]), "the run's maps": found.read(first)})
    weights = None if mask is None else masks.from_file(mask, frame.size, frame.spacing)

    def true_map(state: int) -> np.ndarray:
        return frame.fitted(read_map(paths[state]), str(paths[state]))

    def own_map(number: int) -> np.ndarray:
        return frame.fitted(found.read(number), f"map {number} of the run")

    consensus = _consensus(run, frame, own_map, numbers)
    move = None
    if aligned:
        mean = np.zeros((frame.size,) * 3, np.float32)
        for s in present:
            mean += np.float32((states == s).mean()) * true_map(s)
        move = align(consensus, mean, frame.spacing, hands=True)
        notes.append(_describe(move))

    @lru_cache(maxsize=MAPS)
    def run_map(number: int) -> np.ndarray:
        values = consensus if number == CONSENSUS else own_map(number)
        return values if move is None else move.apply(values, frame.spacing)

    def score(load: Callable[[int], np.ndarray], chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return metrics.pair_scores(load, true_map, np.stack([chosen, states], axis=1), frame.spacing, weights)

    areas, resolutions = score(run_map, numbers)
    floor = score(run_map, np.full_like(numbers, CONSENSUS))[0].mean()
    ceiling = score(true_map, states)[0].mean()
    words = (
        "mean area under the FSC of each image's map with its true map; floor: the consensus map, ceiling: the truth"
    )
    scores = [
        Score("fsc_auc_per_image", float(areas.mean()), words, float(floor), float(ceiling)),
        Score(
            "resolution_05",
            float(np.median(resolutions)),
            "median resolution [Å] where the FSC of an image's map with its true map falls below 0.5",
            None,
            frame.size * frame.spacing / ((frame.size - 1) // 2),
        ),
    ]
    return frame, scores + _half_scores(run, mask, notes)


def _scored(found: ParticleMaps, states: np.ndarray, notes: list[str]) -> np.ndarray:
    """Rows whose maps are compared: all, or where each has a map of its own, some spread evenly over the states."""
    if not found.continuous or len(states) <= IMAGES:
        return np.arange(len(states))
    notes.append(f"fsc_auc_per_image, resolution_05: of {IMAGES} particles in proportion to the states.")
    order = np.argsort(states, kind="stable")
    return np.sort(order[np.linspace(0, len(states) - 1, IMAGES).astype(int)])


def _consensus(
    run: RunDirectory, frame: Frame, own_map: Callable[[int], np.ndarray], numbers: np.ndarray
) -> np.ndarray:
    """The run's consensus map, else the mean of the particles' maps."""
    if run.map.is_file():
        return frame.fitted(read_map(run.map), str(run.map))
    mean = np.zeros((frame.size,) * 3, np.float32)
    for number, count in zip(*np.unique(numbers, return_counts=True), strict=True):
        mean += np.float32(count / len(numbers)) * own_map(int(number))
    return mean


def _describe(move: Alignment) -> str:
    angle = np.degrees(Rotation.from_matrix(move.rotation).magnitude())
    hand = "other" if move.mirrored else "same"
    return (
        f"maps were aligned to the truth: {angle:.2f}°, {np.linalg.norm(move.shift):.2f} Å, {hand} hand, "
        f"correlation {move.correlation:.3f}."
    )


def _half_scores(run: RunDirectory, mask: Path | None, notes: list[str]) -> list[Score]:
    if not (run.half1.is_file() and run.half2.is_file()):
        notes.append("resolution_0143: the run has no half maps.")
        return []
    a, b = read_map(run.half1), read_map(run.half2)
    weights = None if mask is None else masks.from_file(mask, len(a.values), a.spacing)
    crossing = fsc.half_map_fsc(a.values, b.values, a.spacing, weights).final.resolution(0.143)
    words = "resolution [Å] where the FSC of the half maps falls below 0.143"
    if crossing.recrossings:
        words += f"; it comes back above at {', '.join(f'{r:.1f}' for r in crossing.recrossings)}"
    limit = len(a.values) * a.spacing / ((len(a.values) - 1) // 2)
    return [Score("resolution_0143", crossing.resolution, words, None, limit)]
