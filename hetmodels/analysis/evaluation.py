"""Score a run against the known truth of a simulation; every score comes with its floor and its ceiling."""

import dataclasses
from pathlib import Path

import numpy as np

from hetmodels.analysis import fsc, masks, metrics
from hetmodels.analysis.latent_scores import coordinate_scores, interval_scores, latents_of, model_scores
from hetmodels.analysis.map_scores import MapScores
from hetmodels.analysis.particle_maps import ParticleMaps, particle_maps
from hetmodels.analysis.rows import Rows, matching_rows
from hetmodels.analysis.scores import Score
from hetmodels.data.maps import read_map
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
        """The scores by name; the agreed names are all there, None where one does not apply.

        Areas under the FSC come with their bounds as `…_floor` and `…_ceiling`; those of single images are the agreed
        `fsc_auc_floor` and `fsc_auc_ceiling`.
        """
        found: dict[str, float | None] = {s.name: s.value for s in self.scores}
        for s in self.scores:
            if s.name.startswith("fsc_auc") and s.floor is not None:
                stem = "fsc_auc" if s.name == "fsc_auc_per_image" else s.name
                found |= {f"{stem}_floor": s.floor, f"{stem}_ceiling": s.ceiling}
        return {name: found.get(name) for name in (*NAMES, *(n for n in found if n not in NAMES))}


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
    found = particle_maps(run, rows)
    scores = [*_class_scores(rows, states, notes), *_latent_scores(found, rows, true, where, Path(truth), notes)]
    scores += _pose_scores(rows, true, where, aligned, notes)
    compared = MapScores.of(run, found, rows, Path(truth), states, mask, aligned, notes)
    scores = [*compared.scores(), *_half_scores(run, mask, notes), *scores]
    frame = compared.frame
    return Evaluation(tuple(scores), tuple(notes), len(states), len(np.unique(states)), frame.size, frame.spacing)


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


def _latent_scores(
    found: ParticleMaps, rows: Rows, true: Rows, where: np.ndarray, truth: Path, notes: list[str]
) -> list[Score]:
    both = latents_of(rows, true, where, notes)
    scores = [] if both is None else coordinate_scores(*both)
    posterior, states = found.posterior, true.required("hetTrueState")[where].astype(int)
    if found.continuous and posterior is not None and "covariance" in posterior.local:
        return scores + model_scores(posterior, lambda s: read_map(truth / f"state_{s:03d}.mrc"), states, notes)
    sd = rows.numbered("hetLatentSd")
    if both is None or sd is None or sd.shape != both[0].shape:
        notes.append("coverage: the run gives no standard deviations of its latents (_hetLatentSd1).")
        return scores
    return scores + interval_scores(both[0], sd, both[1])


def _pose_scores(rows: Rows, true: Rows, where: np.ndarray, aligned: bool, notes: list[str]) -> list[Score]:
    estimated, known = rows.rotation(), true.rotation()
    if estimated is None or known is None:
        notes.append("rotation_error_deg: Euler angles are missing in the run or in the truth.")
        return []
    errors, _, _ = metrics.rotation_errors(estimated, known[where], hands=aligned)
    words = "median angle [°] to the true pose, one global rotation removed"
    return [Score("rotation_error_deg", float(np.degrees(np.median(errors))), words, None, 0.0)]


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
