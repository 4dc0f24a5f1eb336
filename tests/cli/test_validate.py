"""`hetmodels validate` as a user runs it."""

import json

import pytest

from hetmodels.cli import main
from hetmodels.posterior import Posterior


@pytest.mark.slow
def test_a_motion_that_is_there_is_found_by_both_halves(tmp_path, capsys):
    words = f"simulate {tmp_path}/a.star --phantom 2 -n 600 --box 16 --pixel 12 --snr 0.3 --json"
    assert main(words.split()) == 0
    run = tmp_path / "run"
    words = f"fit {tmp_path}/a.star --family subspace --set family.dims=1 --set engine.iterations=8 -o {run} --json"
    assert main(words.split()) == 0
    before = json.loads((run / "metrics.json").read_text())
    capsys.readouterr()
    assert main(["validate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["half_components_found"] == 1 and found["half_component_cosines"][0] > 0.9
    assert min(map(min, found["half_latent_correlations"])) > 0.9
    assert found["half_unseen_log_evidence"] < 0
    assert json.loads((run / "metrics.json").read_text()) == before | found
    pair = [Posterior.load(run / "halves" / f"half{number}.nc") for number in (1, 2)]
    assert all(p.particles == 600 and p.provenance["training"] < 300 for p in pair)
    assert main(["analyze", str(run), "--no-images", "--json"]) == 0
    assert "found by both" in json.loads(capsys.readouterr().out)["answers"]["Resolution"]["words"]
