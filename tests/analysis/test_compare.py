import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from hetmodels.analysis.compare import clustered_se, compare
from hetmodels.errors import DataError, UsageError
from hetmodels.families import Classes, Homogeneous
from hetmodels.imaging.likelihood import log_evidence_zero
from hetmodels.model import render
from hetmodels.observation import Contrast, FixedNoise, Known
from hetmodels.posterior import Posterior
from inference import EM, fit
from inference.fitting import local_posterior, make_problem

sys.path.append(str(Path(__file__).parents[1] / "inference"))
from simulated import simulated  # noqa: E402

FACTS = {"data_hash": "abc", "box": 32, "spacing": 4.0, "band": 15, "window": None, "pose": "Known()"}


def scored(values, se=0.0, size=3, held=None, unit=None, **facts):
    n = len(values)
    held = np.ones(n, bool) if held is None else held
    local = {
        "log_predictive": np.asarray(values, float), "log_evidence_se": np.full(n, se), "held_out": held,
        "unit": np.arange(n) if unit is None else unit,
    }  # fmt: skip
    return Posterior(None, {"map": np.zeros((1, 1, size))}, True, local, provenance=FACTS | facts)


def test_differences_are_paired_and_best_comes_first():
    rng = np.random.default_rng(0)
    common, gain = 50 * rng.normal(size=400), 0.3 + rng.normal(size=400)
    found = compare({"a": scored(common), "b": scored(common + gain, size=9)})
    best, other = found.rows
    assert (best.run, other.run) == ("b", "a") and best.elpd_diff == 0 and best.elpd_diff_se == 0
    assert other.elpd_diff == pytest.approx(-gain.sum())
    assert other.elpd_diff_se == pytest.approx(np.sqrt(400 * gain.var()))
    assert best.se == pytest.approx(np.sqrt(400 * (common + gain).var()))
    assert [r.run for r in found.supported] == ["b"]
    assert found.verdict().startswith("The data support b. They speak against a: 0.284")


def test_where_runs_do_not_differ_the_simplest_is_named():
    rng = np.random.default_rng(1)
    common, apart = rng.normal(size=100), rng.normal(size=100)
    apart -= apart.mean() - 0.05
    found = compare({"big": scored(common + apart, size=50), "small": scored(common), "bad": scored(common - 3)})
    assert [r.run for r in found.supported] == ["big", "small"]
    assert "do not tell big and small apart" in found.verdict() and "simplest of them is small" in found.verdict()
    assert "speak against bad: 3.05" in found.verdict()


def test_sampling_errors_widen_the_verdict_and_are_said():
    values = np.random.default_rng(2).normal(size=200)
    found = compare({"a": scored(values + 0.2 + 0.01 * values, se=2.0), "b": scored(values)})
    assert len(found.supported) == 2 and any("Monte-Carlo standard error of 2 nats" in n for n in found.notes)
    clear = compare({"a": scored(values + 0.2 + 0.01 * values), "b": scored(values)})
    assert len(clear.supported) == 1


def test_particles_of_a_micrograph_count_together():
    rng = np.random.default_rng(3)
    unit = np.repeat(np.arange(40), 25)
    values = rng.normal(size=40)[unit] + 0.1 * rng.normal(size=1000)
    totals = [clustered_se(rng.permutation(values), unit), clustered_se(values, unit)]
    assert totals[1] == pytest.approx(25 * np.sqrt(40), rel=0.3) and totals[0] < totals[1] / 3
    assert clustered_se(values, np.arange(1000)) is None and clustered_se(values, unit % 5) is None
    found = compare({"a": scored(values, unit=unit), "b": scored(0 * values, unit=unit)})
    assert found.rows[1].cautious_se == pytest.approx(totals[1])


def test_arviz_gives_the_same_numbers():
    rng = np.random.default_rng(4)
    common = 900 + 30 * rng.normal(size=300)
    runs = {name: scored(common + rng.normal(size=300) + shift) for name, shift in (("a", 0), ("b", 0.1), ("c", -1))}
    found, table = compare(runs), compare(runs).to_arviz()
    assert list(table.index) == [row.run for row in found.rows]
    for row in found.rows:
        assert float(table.loc[row.run, "weight"]) == pytest.approx(row.weight, abs=0.06)
        assert abs(float(table.loc[row.run, "elpd_diff"])) == pytest.approx(-row.elpd_diff, abs=0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_hash": "xyz"}, "only where the data"),
        ({"box": 64}, "the box in pixels"),
        ({"band": 12}, "the band of Fourier shells"),
        ({"window": 100.0}, "the image window"),
        ({"held": np.arange(50) < 25}, "the same held-out particles"),
        ({"held": np.zeros(50, bool)}, "none is held out"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(change, words):
    with pytest.raises(DataError, match=words):
        compare({"a": scored(np.zeros(50)), "b": scored(np.zeros(50), **change)})


def test_what_has_no_scores_is_refused():
    good = scored(np.zeros(50))
    with pytest.raises(UsageError, match="at least two"):
        compare({"a": good})
    with pytest.raises(DataError, match="no run on particles"):
        compare({"a": good, "b": dataclasses.replace(good, local={})})
    older = {k: v for k, v in good.local.items() if k != "log_predictive"}
    with pytest.raises(DataError, match="Fit it again"):
        compare({"a": good, "b": dataclasses.replace(good, local=older)})


@pytest.fixture(scope="module")
def data():
    return simulated(n=400, states=2, snr=0.3, contrast_sd=0.1).particles


def fitted(data, family, **options):
    return fit(family, data, EM(iterations=6), key=jax.random.key(0), holdout=0.3, **options)


@pytest.fixture(scope="module")
def one(data):
    return fitted(data, Homogeneous())


def problem_of(data):
    choices = {"pose": Known(), "noise": FixedNoise(), "halves": False, "holdout": 0.3}
    return make_problem(Homogeneous(), data, **choices, **dict.fromkeys(("contrast", "outliers", "start", "given")))


def residuals(problem, shared, rows):
    """Images, images less the model, and the variance of the pixels, complex128 and float64."""
    batch = problem.batch(rows)
    model = render(problem.family.volume(shared, None), problem.observed(shared, batch), {})
    variance = np.asarray(shared["noise"], float)[np.asarray(batch.group)][:, problem.particles.disc.shell]
    return np.asarray(batch.images, complex), np.asarray(batch.images, complex) - np.asarray(model, complex), variance


def test_the_score_is_the_log_density_of_the_image_less_that_of_reference_noise(data, one):
    rows = np.flatnonzero(one.local["held_out"])[:20]
    images, left, variance = residuals(problem_of(data), one.first(), rows)
    dense = np.asarray(log_evidence_zero(left, variance)) - np.asarray(
        log_evidence_zero(images, np.ones_like(variance))
    )
    np.testing.assert_allclose(one.local["log_predictive"][rows], dense, atol=2e-3)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_wrong_noise_spectrum_loses_by_what_the_density_says(data, one, factor):
    """The evidence relative to a run's own noise would favour too little noise; the score must not."""
    problem, shared = problem_of(data), one.first()
    local = local_posterior(problem, [shared | {"noise": factor * shared["noise"]}], jax.random.key(0))[0]
    wrong = dataclasses.replace(one, local=local, extra={})
    found = compare({"wrong": wrong, "right": one})
    assert found.rows[0].run == "right" and found.rows[1].worse
    _, left, variance = residuals(problem, shared, found.rows_held_out)
    loss = (np.abs(left) ** 2 / variance * (1 / factor - 1) + np.log(factor)).sum()
    assert -found.rows[1].elpd_diff == pytest.approx(loss, rel=1e-4)
    held = found.rows_held_out
    assert (local["log_evidence"][held].mean() > one.local["log_evidence"][held].mean()) == (factor < 1)


def test_bands_sum_to_the_score(data, one):
    two = fitted(data, Classes(classes=2), contrast=Contrast(0.2))
    for run in (one, two):
        extra = run.extra
        assert extra["predictive_limits"][-1] == data.disc.limit
        whole = run.local["log_predictive"][extra["predictive_rows"]]
        np.testing.assert_allclose(extra["predictive_bands"].sum(1), whole, atol=5e-3)
    found = compare({"one": one, "two": two})
    total = found.bands.differences["one"].sum() * len(found.rows_held_out)
    assert total == pytest.approx({r.run: r for r in found.rows}["one"].elpd_diff, abs=1.0)
    assert len(found.bands.resolution) == len(found.bands.limits) <= 8
