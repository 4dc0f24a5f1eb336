"""Every example runs at tiny size and stays short enough to be read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# much to compile: two or three fits each, or chains
LONG = "02_own_family.py", "04_hinge.py", "05_tail.py", "06_ligand.py", "07_walkthrough.py"
EXAMPLES = [
    pytest.param(script, marks=[pytest.mark.slow] * (script.name in LONG), id=script.name)
    for script in sorted((ROOT / "examples").glob("*.py"))
]


@pytest.mark.parametrize("script", EXAMPLES)
def test_example_runs_at_tiny_size(script, tmp_path):
    assert script.read_text(encoding="utf-8").count("\n") <= 80
    words = [sys.executable, str(script), "--smoke"]
    done = subprocess.run(words, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
