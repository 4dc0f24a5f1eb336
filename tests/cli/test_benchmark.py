"""The benchmark scores what is not scored yet, says what was published, and refuses to mix conditions."""

import json

import pytest

from hetmodels.cli import main
from hetmodels.cli.benchmark import Lines, in_words
from hetmodels.cli.published import PER_IMAGE, SETS, SOURCE

SMALL = ["-n", "150", "--box", "16", "--pixel", "12", "--snr", "0.5", "--states", "4"]
ONE = ["--sets", "motion", "--fit", "homogeneous:em:engine.iterations=2"]


@pytest.mark.slow
def test_a_set_is_made_fitted_and_scored_once(tmp_path, capsys):
    words = ["benchmark", "-o", str(tmp_path), *SMALL, *ONE, "--json"]
    assert main(words) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["set"] == "motion" and row["fsc_auc_floor"] <= row["fsc_auc_ceiling"] + 1e-6
    assert 0 < row["fsc_auc_per_image"] < 0.5 and row["cpu_seconds"] > 0
    before = (tmp_path / "motion.mrcs").stat().st_mtime_ns
    assert main(words) == 0 and len((tmp_path / "results.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "motion.mrcs").stat().st_mtime_ns == before
    capsys.readouterr()
    assert main([*words[:-1], "--seed", "1"]) == 1 and "Give another -o" in capsys.readouterr().err


def test_lines_are_found_again_and_belong_to_their_conditions(tmp_path):
    lines = Lines(tmp_path / "results.jsonl", {"n": 100, "box": 32})
    lines.add({"set": "motion", "fit": "classes:em"})
    again = Lines(tmp_path / "results.jsonl", {"n": 100, "box": 32})
    assert again.find("motion", "classes:em") is not None and again.find("linker", "classes:em") is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sets", "motoin"], "no set 'motoin'"),
        (["--fit", "classes"], "FAMILY:ENGINE"),
        (["--fit", "classes:em:8"], "FAMILY:ENGINE"),
        (["--trajectory", "a.dcd"], "go together"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, capsys, words, said):
    assert main(["benchmark", "-o", str(tmp_path / "b"), *words]) == 2
    assert said in capsys.readouterr().err


def test_published_scores_stand_beside_and_are_marked(tmp_path):
    rows = [
        {
            "set": "motion",
            "fit": "subspace:em",
            "fsc_auc_per_image": 0.21,
            "fsc_auc_floor": 0.18,
            "fsc_auc_ceiling": 0.4,
        }
    ]
    text = in_words(rows, ["motion", "species"], tmp_path)
    assert "0.210" in text and "published" in text and SOURCE in text and "read the order" in text
    line = next(part for part in text.splitlines() if part.startswith("RECOVAR"))
    assert line.split()[-2:] == ["0.386", "0.258"]
    assert all(len(values) == len(SETS) for values in PER_IMAGE.values())
