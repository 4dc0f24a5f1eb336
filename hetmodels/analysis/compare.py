"""Which description the data support: predictive densities of held-out particles, compared pair by pair.

The score of a run is its expected log predictive density, elpd = sum_i log p(y_i) over held-out particles, with the
latents and poses of each integrated, relative to noise of the reference spectrum, which belongs to the data.
Differences are taken particle by particle, with the standard error sqrt(n Var(d_i)) (Vehtari, Gelman and Gabry 2017,
Statistics and Computing 27, equation 24).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from hetmodels.analysis.mixtures import mixture_weights
from hetmodels.errors import DataError, UsageError
from hetmodels.posterior import Posterior

FEWEST_UNITS = 10  # micrographs from which a standard error can be had
FEWEST = 30  # particles
MONTE_CARLO = 0.05  # nats per particle
CLEAR = 2.0  # standard errors

_SAME = {
    "box": "the box in pixels",
    "spacing": "the pixel size",
    "band": "the band of Fourier shells",
    "window": "the image window",
    "data_hash": "the data (their hash)",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One run of a comparison; in nats, summed over the held-out particles.

    Attributes:
        run: its name.
        elpd: log predictive density, relative to noise of the reference spectrum.
        se: its standard error over particles.
        elpd_diff: elpd less that of the best run; 0 for the best, else negative.
        elpd_diff_se: standard error of the difference, by particle.
        elpd_diff_se_unit: the same by micrograph, whose particles share errors; None where there are too few.
        weight: stacking weight, see `mixture_weights`.
        monte_carlo_se: standard error of elpd from the sampling of latents and shared values.
        numbers: how many shared numbers the run has inferred.
    """

    run: str
    elpd: float
    se: float
    elpd_diff: float
    elpd_diff_se: float
    elpd_diff_se_unit: float | None
    weight: float
    monte_carlo_se: float
    numbers: int

    @property
    def cautious_se(self) -> float:
        """The larger of the two standard errors of the difference."""
        return max(self.elpd_diff_se, self.elpd_diff_se_unit or 0.0)

    @property
    def worse(self) -> bool:
        """Whether the best run is better by more than two standard errors, sampling errors included."""
        return -self.elpd_diff > CLEAR * float(np.hypot(self.cautious_se, self.monte_carlo_se))


@dataclasses.dataclass(frozen=True, eq=False)
class Bands:
    """Where in the spectrum the runs differ: log p(y_b | coarser shells), in nats per particle.

    Attributes:
        limits: the last shell of each band, (bands,).
        resolution: the same in Å.
        differences: mean over particles of each run less the best one, by run, (bands,).
        errors: their standard errors.
    """

    limits: np.ndarray
    resolution: np.ndarray
    differences: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The runs, best first.

    Attributes:
        rows: one per run.
        pointwise: log predictive density of each held-out particle, by run, (particles,).
        rows_held_out: which particles these are, (particles,).
        bands: breakdown by Fourier shells, None where a run has none.
        notes: what to know when reading the table.
    """

    rows: tuple[Row, ...]
    pointwise: dict[str, np.ndarray]
    rows_held_out: np.ndarray
    bands: Bands | None
    notes: tuple[str, ...]

    @property
    def supported(self) -> tuple[Row, ...]:
        """The best run and those that do not differ from it by more than two standard errors."""
        return tuple(row for row in self.rows if not row.worse)

    def verdict(self) -> str:
        """What the data support, by how much, and where they do not differ."""
        count, best, tied = len(self.rows_held_out), self.rows[0], self.supported
        text = []
        if len(tied) == 1:
            text.append(f"The data support {best.run}.")
        else:
            simplest = min(tied, key=lambda row: row.numbers)
            text.append(f"The data do not tell {_listed([r.run for r in tied])} apart.")
            text += [f"{row.run} is {_nats(row, count)} behind {best.run}." for row in tied[1:]]
            if simplest.numbers < max(row.numbers for row in tied):
                text.append(f"The simplest of them is {simplest.run}, with {simplest.numbers:,} numbers inferred.")
        for row in self.rows:
            if row.worse:
                text.append(f"They speak against {row.run}: {_nats(row, count)} behind {best.run}.")
        return " ".join(text)

    def to_arviz(self) -> Any:
        """ArviZ's own table of the same scores, each particle's relative to the mean of the runs."""
        from hetmodels.arviz_bridge import compare_pointwise

        mean = np.mean(list(self.pointwise.values()), axis=0)
        return compare_pointwise({name: values - mean for name, values in self.pointwise.items()})


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _nats(row: Row, count: int) -> str:
    return f"{-row.elpd_diff / count:.3g} ± {row.cautious_se / count:.2g} nats per particle"


def compare(posteriors: Mapping[str, Posterior]) -> Comparison:
    """Compare runs by the predictive density of the same held-out particles.

    Args:
        posteriors: of particles, by the name of the run; at least two.

    Raises:
        UsageError: if there are fewer than two.
        DataError: if a run has no held-out scores, or runs differ in data, box, band, window or held-out particles.
    """
    if len(posteriors) < 2:
        raise UsageError(f"compare: at least two runs are needed, got {len(posteriors)}.")
    for name, posterior in posteriors.items():
        _require_scores(name, posterior)
    first, *others = posteriors
    for name in others:
        _require_same(first, posteriors[first], name, posteriors[name])
    held = posteriors[first].local["held_out"].astype(bool)
    scores = {name: p.local["log_predictive"][held].astype(float) for name, p in posteriors.items()}
    order = sorted(scores, key=lambda name: -scores[name].sum())
    unit = posteriors[first].local["unit"][held]
    weights = mixture_weights(np.stack([scores[name] for name in order], axis=1)).weights
    errors = {name: _monte_carlo(posterior)[held] for name, posterior in posteriors.items()}
    rows = tuple(
        _row(name, scores, order[0], unit, float(weight), errors, posteriors[name])
        for name, weight in zip(order, weights, strict=True)
    )
    notes = _notes(rows, posteriors, errors)
    return Comparison(rows, {n: scores[n] for n in order}, np.flatnonzero(held), _bands(order, posteriors), notes)


def _row(
    name: str,
    scores: dict[str, np.ndarray],
    best: str,
    unit: np.ndarray,
    weight: float,
    errors: dict[str, np.ndarray],
    posterior: Posterior,
) -> Row:
    own, difference = scores[name], scores[name] - scores[best]
    sampled = np.sqrt((errors[name] ** 2).sum() + (name != best) * (errors[best] ** 2).sum())
    numbers = sum(int(np.prod(value.shape[2:])) for value in posterior.shared.values())
    return Row(
        name,
        float(own.sum()),
        float(np.sqrt(len(own) * own.var())),
        float(difference.sum()),
        float(np.sqrt(len(own) * difference.var())),
        clustered_se(difference, unit),
        weight,
        float(sampled),
        numbers,
    )


def clustered_se(values: np.ndarray, unit: np.ndarray) -> float | None:
    """Standard error of a sum whose terms are independent between units only; None with too few units.

    Args:
        values: (particles,).
        unit: number of the micrograph of each, (particles,).
    """
    _, place = np.unique(unit, return_inverse=True)
    count = int(place.max()) + 1
    if count < FEWEST_UNITS or count == len(values):
        return None
    totals = np.bincount(place, values - values.mean())
    return float(np.sqrt(count / (count - 1) * (totals**2).sum()))


def _monte_carlo(posterior: Posterior) -> np.ndarray:
    """Standard error of each particle's score: of the integration, and of the average over draws, (particles,)."""
    local = posterior.local
    inner = np.asarray(local["log_evidence_se"], float)
    held = posterior.extra.get("log_likelihood/held_out")
    if held is None or held.shape[1] < 2:
        return inner
    share = np.exp(held[0] - held[0].max(0))
    outer = np.zeros(len(inner))
    outer[local["held_out"].astype(bool)] = share.std(0, ddof=1) / share.mean(0) / np.sqrt(len(share))
    return np.hypot(inner, outer)


def _require_scores(name: str, posterior: Posterior) -> None:
    if not posterior.local:
        raise DataError(f"{name}: this is no run on particles, so there are no held-out particles to compare.")
    if "log_predictive" not in posterior.local:
        raise DataError(f"{name}: the run lacks log_predictive, which an older version did not keep. Fit it again.")
    held = posterior.local["held_out"].astype(bool)
    if not held.any():
        raise DataError(f"{name}: all particles trained, none is held out to compare by. Fit it with --holdout 0.1.")
    bad = int((~np.isfinite(posterior.local["log_predictive"][held])).sum())
    if bad:
        raise DataError(f"{name}: scores must be finite, {bad} of {held.sum()} held-out particles have none.")


def _require_same(first: str, a: Posterior, name: str, b: Posterior) -> None:
    for key, words in _SAME.items():
        one, other = a.provenance.get(key), b.provenance.get(key)
        if one != other:
            raise DataError(
                f"{name}: runs can be compared only where {words} agrees; {first} has {_short(one)}, {name} has "
                f"{_short(other)}. Fit both from the same particle file with the same --box and --window."
            )
    ours, theirs = a.local["held_out"].astype(bool), b.local["held_out"].astype(bool)
    if not np.array_equal(ours, theirs):
        raise DataError(
            f"{name}: runs can be compared only by the same held-out particles; {first} holds out {ours.sum()}, {name} "
            f"{theirs.sum()}. Fit both with the same --holdout."
        )


def _short(value: Any) -> str:
    return str(value)[:12]


def _notes(
    rows: tuple[Row, ...], posteriors: Mapping[str, Posterior], errors: dict[str, np.ndarray]
) -> tuple[str, ...]:
    notes = []
    count = len(errors[rows[0].run])
    if count < FEWEST:
        notes.append(f"{count} held-out particles are few: standard errors are themselves uncertain.")
    if all(row.elpd_diff_se_unit is None for row in rows):
        notes.append("standard errors are by particle: there are too few held-out micrographs, or they are not known.")
    for name, error in errors.items():
        typical = float(np.sqrt((error**2).mean()))
        if typical > MONTE_CARLO:
            notes.append(
                f"{name}: scores have a Monte-Carlo standard error of {typical:.2g} nats per particle, above "
                f"{MONTE_CARLO}; it is part of the verdict."
            )
    poses = {str(p.provenance.get("pose", "")).partition("(")[0] for p in posteriors.values()}
    if len(poses) > 1:
        notes.append("the runs differ in what they know of the poses, which is part of what is compared.")
    if poses & {"Known", "Refined"}:
        notes.append("poses of the file count as known: had they been refined on these particles, all runs gain alike.")
    return tuple(notes)


def _bands(order: list[str], posteriors: Mapping[str, Posterior]) -> Bands | None:
    parts = {name: posteriors[name].extra for name in order}
    if any("predictive_bands" not in part for part in parts.values()):
        return None
    limits = parts[order[0]]["predictive_limits"]
    best = parts[order[0]]["predictive_bands"]
    length = float(posteriors[order[0]].provenance["box"]) * float(posteriors[order[0]].provenance["spacing"])
    apart = {name: part["predictive_bands"] - best for name, part in parts.items()}
    errors = {name: values.std(0) / np.sqrt(len(values)) for name, values in apart.items()}
    return Bands(limits, length / limits, {name: values.mean(0) for name, values in apart.items()}, errors)
