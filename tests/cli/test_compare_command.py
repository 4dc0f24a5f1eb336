import json

import numpy as np
import pytest

from hetmodels.cli import main
from hetmodels.families import Classes, Homogeneous
from hetmodels.families.protocol import Frame
from hetmodels.posterior import Posterior
from hetmodels.run_directory import RunDirectory

N, SIZE = 80, 8
FRAME = Frame(SIZE, 3.0, (1.0,) * 4)
FACTS = {"data_hash": "abc", "box": SIZE, "spacing": 3.0, "band": 3, "window": None, "pose": "Known()"}


def save(folder, family, shared, score, nodes, bands=True, **facts):
    held = np.arange(N) % 2 == 0
    local = {
        "mean": np.empty((N, 0)), "responsibilities": nodes, "log_predictive": score, "held_out": held,
        "log_evidence_se": np.zeros(N), "unit": np.arange(N),
    }  # fmt: skip
    extra = {
        "predictive_bands": np.stack([score[held] / 3, 2 * score[held] / 3], axis=1),
        "predictive_rows": np.flatnonzero(held), "predictive_limits": np.array([1, 3]),
    }  # fmt: skip
    shared = {name: value[None, None] for name, value in shared.items()}
    run = RunDirectory(folder)
    folder.mkdir()
    run.config.write_text("")
    Posterior(family, shared, True, local, provenance=FACTS | facts, extra=extra if bands else {}).save(run.posterior)
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(0)
    score, maps = rng.normal(size=N), rng.normal(size=(2, SIZE, SIZE, SIZE)).astype(np.float32)
    two = {"maps": maps, "weights": np.array([0.5, 0.5])}
    return (
        save(tmp_path / "one", Homogeneous(frame=FRAME), {"map": maps.mean(0)}, score, np.ones((N, 1))),
        save(tmp_path / "two", Classes(2, frame=FRAME), two, score + 2, rng.dirichlet(np.ones(2), N)),
    )


def test_json_is_a_list_best_first(runs, capsys):
    assert main(["compare", *runs, "--json"]) == 0
    best, other = json.loads(capsys.readouterr().out)
    assert (best["run"], other["run"]) == (runs[1], runs[0])
    assert {"run", "elpd", "se", "elpd_diff", "elpd_diff_se"} <= set(best)
    assert best["elpd_diff"] == 0 and other["elpd_diff"] == pytest.approx(-2 * N / 2) and not other["supported"]
    assert [b["difference"] for b in other["bands"]] == pytest.approx([-2 / 3, -4 / 3])
    assert [b["resolution"] for b in other["bands"]] == pytest.approx([24.0, 8.0])
    assert other["agreement"]["classes"] is None and other["agreement"]["maps"] < 1 and "agreement" not in best


def test_the_verdict_is_in_words(runs, capsys):
    assert main(["compare", *runs]) == 0
    text = capsys.readouterr().out
    assert f"The data support {runs[1]}. They speak against {runs[0]}: 2 ± " in text and "24.0 Å" in text


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [({"data_hash": "x"}, 1, "only where the data"), ({"box": 9}, 1, "the box in pixels")],
)
def test_other_data_are_refused(runs, tmp_path, capsys, change, status, words):
    maps = np.zeros((SIZE,) * 3, np.float32)
    third = save(tmp_path / "x", Homogeneous(frame=FRAME), {"map": maps}, np.zeros(N), np.ones((N, 1)), **change)
    assert main(["compare", runs[0], third]) == status
    assert words in capsys.readouterr().err


def test_wrong_calls(runs, tmp_path, capsys):
    assert main(["compare", runs[0]]) == 2
    assert main(["compare", runs[0], runs[0]]) == 2
    assert main(["compare", runs[0], str(tmp_path / "none")]) == 1
    (tmp_path / "two" / "posterior.nc").unlink()
    assert main(["compare", *runs]) == 2
    assert "no posterior.nc" in capsys.readouterr().err
