import json

import pytest

from hetmodels import cli
from hetmodels.families import FAMILIES
from inference import ENGINES


def answer(capsys, *words):
    assert cli.main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_families_are_listed_with_summary_and_engines(capsys):
    found = answer(capsys, "families")
    assert [entry["name"] for entry in found] == list(FAMILIES)
    assert all(entry["summary"] and set(entry["engines"]) == set(ENGINES) for entry in found)
    assert cli.main(["families"]) == 0
    text = capsys.readouterr().out
    assert all(f"{entry['name']}  " in text and entry["summary"] in text for entry in found)


def test_a_family_shows_each_setting_with_type_default_and_doc(capsys):
    found = answer(capsys, "families", "classes")
    settings = {setting["name"]: setting for setting in found["settings"]}
    assert settings["classes"]["type"] == "int" and settings["classes"]["default"] == "2"
    assert settings["classes"]["doc"] == "number of maps K."
    assert cli.main(["families", "classes"]) == 0
    text = capsys.readouterr().out
    assert "family.classes: int (default 2)" in text and "engines: " in text and "em" in text


def test_engines_show_the_computed_table_with_its_reasons(capsys):
    found = answer(capsys, "engines")
    assert {entry["name"] for entry in found["engines"]} == set(ENGINES)
    assert found["families"]["homogeneous"]["em"] is None
    assert cli.main(["engines"]) == 0
    text = capsys.readouterr().out
    refusals = [reason for row in found["families"].values() for reason in row.values() if reason]
    assert "✓" in text and all(reason in text for reason in refusals)


@pytest.mark.parametrize("name", ENGINES)
def test_each_engine_shows_its_settings(name, capsys):
    assert all(setting["doc"] for setting in answer(capsys, "engines", name)["settings"])


def test_settings_of_an_object_in_a_setting_are_listed_by_their_dotted_names(capsys):
    settings = {setting["name"]: setting for setting in answer(capsys, "engines", "em")["settings"]}
    assert settings["ab_initio.steps"]["type"] == "int" and settings["ab_initio.steps"]["default"] == "50"
    assert "batches of a start" in settings["ab_initio.steps"]["doc"]


def test_an_unknown_name_is_a_usage_error(capsys):
    assert cli.main(["families", "clases"]) == 2
    assert "no family 'clases'. Did you mean 'classes'?" in capsys.readouterr().err
    assert cli.main(["engines", "ems"]) == 2
