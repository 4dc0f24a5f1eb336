"""Importing does nothing, and the command line answers at once."""

import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HELP = [sys.executable, "-m", "hetmodels.cli", "--help"]

WALK = """
import importlib, json, logging, os, pkgutil, sys
import jax
before = dict(os.environ), dict(jax.config.values), list(logging.getLogger().handlers)
import hetmodels, inference
names = [m.name for p in (hetmodels, inference) for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
names = [name for name in names if not name.endswith("__main__")]
effects = {}
for name in names:
    importlib.import_module(name)
    after = dict(os.environ), dict(jax.config.values), list(logging.getLogger().handlers)
    from jax._src import xla_bridge
    changed = [what for what, a, b in zip(("environment", "JAX flags", "logging"), before, after) if a != b]
    changed += ["JAX backend started"] if xla_bridge._backends else []
    if changed:
        effects[name] = changed
        break
print(json.dumps({"modules": len(names), "effects": effects, "files": os.listdir()}))
"""

COMMANDS = """
import contextlib, io, json, sys
from hetmodels import cli
slow = {}
for name in cli.COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main([name, "--help"]) == 0
    found = sorted({"jax", "numpyro", "pandas", "scipy", "xarray", "arviz"} & set(sys.modules))
    if found:
        slow[name] = found
        break
print(json.dumps(slow))
"""


def run(script: str, folder) -> dict:
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_any_module_changes_nothing(tmp_path):
    found = run(WALK, tmp_path)
    assert found["modules"] > 20
    assert not found["effects"] and not found["files"]


def test_help_of_every_command_needs_no_heavy_package(tmp_path):
    assert run(COMMANDS, tmp_path) == {}


def test_help_answers_within_three_tenths_of_a_second(tmp_path):
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run(HELP, cwd=tmp_path, env=dict(os.environ), check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3, seconds


def test_every_package_is_shipped():
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {
        file.parent.relative_to(ROOT) for top in ("hetmodels", "inference") for file in (ROOT / top).rglob("*.py")
    }
    assert set(named) == {".".join(folder.parts) for folder in folders}
