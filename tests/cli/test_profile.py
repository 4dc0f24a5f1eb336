"""`hetmodels profile`: two states as wells of a path of three maps, the mixture of both between them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from hetmodels.cli import main
from hetmodels.data.maps import read_map, write_map


@pytest.mark.slow
def test_two_states_are_two_wells(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    star, run, out = tmp_path / "a.star", tmp_path / "run", tmp_path / "out"
    words = "--phantom 2 --box 16 --pixel 10 -n 300 --snr 2".split()
    assert main(["simulate", str(star), *words]) == 0
    truth = star.with_suffix(".truth")
    first, second = (read_map(truth / f"state_00{k}.mrc") for k in (1, 2))
    write_map(tmp_path / "between.mrc", (first.values + second.values) / 2, first.spacing, first.origin)
    fit = ["fit", star, "-o", run, "--family", "homogeneous", "--no-halves", "--set", "engine.iterations=3"]
    assert main([str(w) for w in fit]) == 0
    capsys.readouterr()
    maps = [truth / "state_001.mrc", tmp_path / "between.mrc", truth / "state_002.mrc"]
    assert main([str(w) for w in ["profile", run, "-o", out, "--draws", 200, "--json", "--maps", *maps]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["wells"]) == {"state_001.mrc", "state_002.mrc"} and found["barrier"][0] > 1
    assert found["gap"] < 1e-5 and abs(sum(found["weight"]) - 1) < 1e-4
    share = found["weight"][0] / (found["weight"][0] + found["weight"][2])
    assert abs(share - 0.5) < 0.15
    with open(out / "profile.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["free_energy_kt"]) for row in rows] == found["median"] and np.min(found["low"]) >= 0
    assert main([str(w) for w in ["profile", run, "-o", out, "--maps", *maps[:2]]]) == 2
    assert "three maps at least" in capsys.readouterr().err
