import importlib.metadata
import importlib.util
import json
import types

import pytest

from hetmodels import cli
from hetmodels.cli import doctor


def test_a_sound_installation_is_well(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in found["checks"]}
    assert found["ok"] and {"python", "jax", "numpyro", "import inference", "jax devices", "netCDF"} <= set(checks)
    assert cli.main(["doctor"]) == 0
    assert "all is well" in capsys.readouterr().out


@pytest.fixture
def healthy(monkeypatch):
    """All checks but that of the import name are left out."""
    monkeypatch.setattr(doctor, "_versions", list)
    monkeypatch.setattr(doctor, "_devices", list)
    monkeypatch.setattr(doctor, "_machine", list)
    monkeypatch.setattr(doctor, "_netcdf", lambda: doctor.Check("netCDF", True, ""))


def test_another_package_called_inference_is_noticed(tmp_path, monkeypatch, healthy, capsys):
    (tmp_path / "__init__.py").write_text("# somebody else's\n")
    spec = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "is not part of hetmodels" in text and "cure: another package or folder called `inference`" in text


def test_another_distribution_with_that_name_is_noticed(monkeypatch, healthy, capsys):
    owners = {"inference": ["hetmodels", "inference-tools"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    assert cli.main(["doctor"]) == 1
    assert "also installed by inference-tools" in capsys.readouterr().out


def test_a_missing_requirement_is_named_with_its_cure(monkeypatch):
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda name: ["numpy>=2", "no-such-thing>=1", "x; extra == 'a'"]
    )
    checks = {check.name: check for check in doctor._versions()}
    assert checks["numpy"].ok and "x" not in checks
    assert not checks["no-such-thing"].ok and checks["no-such-thing"].cure == "pip install 'no-such-thing>=1'"
