import argparse
import dataclasses
from typing import Any, Literal

import pytest

from hetmodels.cli.config import apply_config, as_table, set_options, settings_of, write_config
from hetmodels.cli.settings import build, convert, fields, load
from hetmodels.errors import UsageError
from inference.ab_initio import AbInitio
from inference.em import EM


@dataclasses.dataclass(frozen=True)
class Adam:
    """An optimizer.

    Attributes:
        rate: step length.
    """

    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Momentum:
    rate: float = 0.2
    decay: float = 0.9


@dataclasses.dataclass(frozen=True)
class Thing:
    """A thing to set.

    Attributes:
        count: how many,
            as a whole number.
        scale: a factor.
    """

    count: int
    scale: float = 1.0
    name: str = "a"
    loud: bool = False
    mode: Literal["fast", "exact"] = "fast"
    limit: float | None = None
    steps: tuple[float, ...] = (1.0,)
    pair: tuple[int, str] = (1, "x")
    optimizer: Any = Adam()

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"Thing: count must be at least 1, got {self.count}.")


def make(*assignments, **given):
    return build(Thing, "engine", {"engine.count": "2"} | dict(a.split("=") for a in assignments), given)


@pytest.mark.parametrize(
    ("assignment", "field", "value"),
    [
        ("engine.count=7", "count", 7),
        ("engine.scale=2", "scale", 2.0),
        ("engine.scale=1e-3", "scale", 1e-3),
        ("engine.loud=true", "loud", True),
        ("engine.loud=No", "loud", False),
        ("engine.mode=exact", "mode", "exact"),
        ("engine.limit=none", "limit", None),
        ("engine.limit=0.5", "limit", 0.5),
        ("engine.steps=1,2.5", "steps", (1.0, 2.5)),
        ("engine.steps=[]", "steps", ()),
        ("engine.pair=(3, y)", "pair", (3, "y")),
        ("engine.optimizer.rate=0.5", "optimizer", Adam(0.5)),
        (f"engine.optimizer={__name__}.Momentum", "optimizer", Momentum()),
    ],
)
def test_text_becomes_the_fields_type(assignment, field, value):
    found = getattr(make(assignment), field)
    assert found == value and type(found) is type(value)


def test_an_object_is_chosen_by_its_dotted_name_and_its_fields_set():
    thing = make(f"engine.optimizer={__name__}.Momentum", "engine.optimizer.decay=0.5")
    assert thing.optimizer == Momentum(decay=0.5)


def test_values_of_a_toml_file_are_taken_as_they_are():
    thing = build(Thing, "e", {"e.count": 3, "e.scale": 2, "e.steps": [1, 2], "e.loud": True, "family.dims": 1})
    assert thing == Thing(3, 2.0, steps=(1.0, 2.0), loud=True)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("engine.cuont=3", ["engine.cuont", "Thing", "Did you mean 'count'?", "scale"]),
        ("engine.count=2.5", ["engine.count", "int", "2.5"]),
        ("engine.scale=wide", ["engine.scale", "float", "wide"]),
        ("engine.scale=nan", ["engine.scale", "float"]),
        ("engine.loud=7", ["engine.loud", "bool", "7"]),
        ("engine.mode=slow", ["engine.mode", "fast", "exact", "slow"]),
        ("engine.limit=few", ["float or none", "few"]),
        ("engine.pair=1", ["engine.pair", "tuple"]),
        ("engine.steps=1,b", ["engine.steps", "float", "'b'"]),
        ("engine.count=0", ["count must be at least 1"]),
        ("engine.optimizer.decya=1", ["engine.optimizer.decya", "Adam", "rate"]),
        ("engine.scale.x=1", ["engine.scale", "no object"]),
    ],
)
def test_a_bad_setting_is_refused_by_name_type_and_value(assignment, words):
    with pytest.raises(UsageError) as caught:
        make(assignment)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_bool_is_no_number():
    with pytest.raises(UsageError, match="int"):
        build(Thing, "e", {"e.count": True})


def test_a_missing_value_is_named_and_given_ones_count():
    with pytest.raises(UsageError, match=r"Thing needs e\.count"):
        build(Thing, "e", {})
    assert build(Thing, "e", {}, {"count": 4}).count == 4
    assert build(Thing, "e", {"e.count": "5"}, {"count": 4}).count == 5


def test_fields_are_listed_with_type_default_and_doc():
    found = fields(Thing)
    assert found["count"].default is None and found["count"].doc == "how many, as a whole number."
    assert (found["scale"].type, found["scale"].default, found["scale"].doc) == ("float", "1.0", "a factor.")
    assert found["optimizer"].default == "Adam(rate=0.1)" and found["loud"].doc == ""


def test_load_finds_short_and_dotted_names_and_refuses_others():
    registry = {"thing": f"{__name__}.Thing", "classes": "nowhere.Classes"}
    assert load("thing", registry, "family") is Thing
    assert load(f"{__name__}:Thing", registry, "family") is Thing
    with pytest.raises(UsageError, match="no family 'clases'. Did you mean 'classes'"):
        load("clases", registry, "family")
    with pytest.raises(UsageError, match="no module 'nowhere'"):
        load("nowhere.Classes", registry, "family")
    with pytest.raises(UsageError, match="no dataclass 'pytest'"):
        load(f"{__name__}.pytest", registry, "family")


def test_a_fault_inside_a_users_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_family.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        load("broken_family.Mine", {}, "family")


def test_optional_members_are_tried_before_text():
    assert convert("3", str | int | None, "k") == 3
    assert convert("three", str | int | None, "k") == "three"


def test_the_search_for_first_maps_is_set_through_em_and_comes_back_from_config_toml(tmp_path):
    engine = build(EM, "engine", {"engine.ab_initio.steps": "7", "engine.ab_initio.rate": "0.5"})
    assert engine.ab_initio == AbInitio(steps=7, rate=0.5) and engine.iterations == EM().iterations
    path = tmp_path / "config.toml"
    write_config(path, {"engine": as_table(engine, "em")})
    parser = argparse.ArgumentParser()
    set_options(parser)
    apply_config(parser, ["--config", str(path)])
    again = settings_of(parser.parse_args(["--config", str(path), "--set", "engine.ab_initio.starts=1"]))
    assert build(EM, "engine", again) == dataclasses.replace(engine, ab_initio=AbInitio(steps=7, rate=0.5, starts=1))
    with pytest.raises(UsageError, match=r"engine\.ab_initio\.step: .* Did you mean 'steps'"):
        build(EM, "engine", {"engine.ab_initio.step": "7"})
    with pytest.raises(UsageError, match="rates lie in"):
        build(EM, "engine", {"engine.ab_initio.rate": "0.1"})
