"""`hetmodels demo` goes the whole way, and says where things are and what they mean."""

import json
import os
import subprocess
import sys
import time

import pytest

from hetmodels.cli import main
from hetmodels.cli.demo import in_words


def test_json_is_one_document_and_the_words_say_what_is_in_it(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path / "demo"), "-n", "400", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert set(found) == {"folder", "seconds", "homogeneous", "classes"}
    assert "[7/7] hetmodels analyze" in err
    assert (tmp_path / "demo" / "classes" / "report.html").stat().st_size > 1e6
    for run in ("homogeneous", "classes"):
        assert (tmp_path / "demo" / run / "volumes" / "map.mrc").exists()
        assert json.loads((tmp_path / "demo" / run / "metrics.json").read_text()) == found[run]
    words = in_words(tmp_path / "demo", found["seconds"], found)
    gain = found["classes"]["log_likelihood_held_out"] - found["homogeneous"]["log_likelihood_held_out"]
    for value in (
        f"{found['homogeneous']['resolution_0143']:.1f} Å",
        f"{100 * found['classes']['class_accuracy']:.0f} %",
        f"{found['classes']['ari']:.2f}",
        f"{abs(gain):.1f} nats",
        f"Everything is in {tmp_path / 'demo'}/",
        "classes/report.html in a browser",
    ):
        assert value in words
    assert main(["demo", "-o", str(tmp_path / "demo"), "-n", "400"]) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_takes_less_than_two_minutes_without_compiled_programs(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    begun = time.monotonic()
    words = [sys.executable, "-m", "hetmodels.cli", "demo", "-o", str(tmp_path / "demo")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert time.monotonic() - begun < 120
    assert "% of the images are in the right one" in done.stdout and "Everything is in" in done.stdout
