import argparse
import dataclasses
import tomllib
from pathlib import Path

import numpy as np
import pytest

from hetmodels.cli.common import Parser, particle_options
from hetmodels.cli.config import (
    apply_config,
    as_table,
    check_prefixes,
    options_table,
    set_options,
    settings_of,
    to_toml,
    write_config,
)
from hetmodels.cli.settings import build
from hetmodels.errors import DataError, UsageError


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="fit")
    made.add_argument("particles", type=Path)
    made.add_argument("-o", "--output", type=Path, required=True)
    made.add_argument("--family", required=True)
    made.add_argument("--engine", default="em")
    made.add_argument("--reference", type=Path, action="append")
    made.add_argument("--halves", action=argparse.BooleanOptionalAction)
    made.add_argument("--pose", choices=["known", "refine"], default="known")
    particle_options(made)
    set_options(made)
    return made


def parsed(folder, text, *words):
    (folder / "run.toml").write_text(text)
    words = [*words, "--config", str(folder / "run.toml")]
    made = parser()
    apply_config(made, words)
    return made.parse_args(words)


RUN = """
particles = "p.star"
output = "run"
box = 64
no-ctf = true

[family]
name = "classes"
classes = 3

[engine.optimizer]
name = "some.Adam"
rate = 0.1

[provenance]
hetmodels = "0.1.0"
"""


def test_a_file_alone_says_everything(tmp_path):
    args = parsed(tmp_path, RUN)
    assert (args.particles, args.output, args.box, args.no_ctf) == (Path("p.star"), Path("run"), 64, True)
    assert (args.family, args.engine) == ("classes", "em")
    settings = settings_of(args)
    assert settings["family.classes"] == 3 and settings["engine.optimizer.rate"] == 0.1
    assert not any(key.startswith("provenance") for key in settings)


def test_the_command_line_beats_the_file(tmp_path):
    args = parsed(tmp_path, RUN, "q.star", "--box", "32", "--set", "family.classes=5", "--set", "family.classes=6")
    assert (args.particles, args.box) == (Path("q.star"), 32)
    assert settings_of(args)["family.classes"] == "6"


def test_collected_and_two_way_options(tmp_path):
    text = 'particles = "p"\noutput = "o"\nfamily = "f"\nreference = ["a.mrc", "b.mrc"]\nhalves = false\n'
    args = parsed(tmp_path, text)
    assert args.reference == [Path("a.mrc"), Path("b.mrc")] and args.halves is False
    args = parsed(tmp_path, text, "--reference", "c.mrc", "--halves")
    assert args.reference == [Path("c.mrc")] and args.halves is True
    assert options_table(args)["reference"] == [Path("c.mrc").absolute()]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("reference = 'a.mrc'", ["reference", "a list"]),
        ("boxx = 3", ["boxx", "Did you mean 'box'"]),
        ("box = 'wide'", ["box", "invalid int value", "wide"]),
        ("box = 3", ["box", "at least 4"]),
        ("box = [1, 2]", ["box", "one value"]),
        ("invert = 1", ["invert", "true or false"]),
        ("pose = 'guess'", ["pose", "known", "guess"]),
        ("config = 'other.toml'", ["no option 'config'"]),
    ],
)
def test_a_bad_entry_is_refused_with_the_file_and_the_key(tmp_path, text, words):
    with pytest.raises(UsageError) as caught:
        parsed(tmp_path, text)
    assert all(word in str(caught.value) for word in ["run.toml", *words]), caught.value


def test_a_file_that_is_no_toml_or_is_missing(tmp_path):
    with pytest.raises(DataError, match="not a TOML file"):
        parsed(tmp_path, "box: 3")
    with pytest.raises(OSError, match="missing.toml"):
        apply_config(parser(), ["--config", str(tmp_path / "missing.toml")])


@pytest.mark.parametrize("text", ["classes=3", "family.classes"])
def test_an_assignment_needs_a_dotted_key_and_a_value(text):
    args = parser().parse_args(["p.star", "-o", "run", "--family", "f", "--set", text])
    with pytest.raises(UsageError, match="KEY=VALUE"):
        settings_of(args)


def test_settings_are_for_the_objects_that_are_built():
    check_prefixes({"family.a": 1}, ["family", "engine"])
    with pytest.raises(UsageError, match=r"famly\.a.*Did you mean 'family'"):
        check_prefixes({"famly.a": 1}, ["family", "engine"])


def test_toml_is_read_back_as_it_was_written():
    table = {
        "text": 'a "quoted" \\ back\nline é \x07',
        "number": -3,
        "real": 1e-30,
        "flag": False,
        "list": [1.5, 2.5],
        "array": np.arange(3),
        "scalar": np.float32(0.5),
        "path": Path("/a/b"),
        "nothing": None,
        "engine": {"name": "em", "a key": 1, "nested": {"rate": 0.1}},
    }
    expected = table | {"array": [0, 1, 2], "scalar": 0.5, "path": "/a/b"}
    del expected["nothing"]
    assert tomllib.loads(to_toml(table)) == expected
    with pytest.raises(TypeError, match="function"):
        to_toml({"f": test_toml_is_read_back_as_it_was_written})


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int = 1
    inner: object = Inner()
    limit: float | None = None
    steps: tuple[float, ...] = (1.0, 2.0)


def test_a_run_is_repeated_from_its_own_config(tmp_path):
    words = ["p.star", "-o", "run", "--family", "f", "--pixel", "1.5", "--invert"]
    args = parser().parse_args(words)
    outer = Outer(count=3, inner=Inner(0.25), steps=(4.0,))
    table = options_table(args) | {"engine": as_table(outer, "outer"), "provenance": {"seed": 1}}
    write_config(tmp_path / "config.toml", table)
    made = parser()
    apply_config(made, ["--config", str(tmp_path / "config.toml")])
    again = made.parse_args(["--config", str(tmp_path / "config.toml")])
    assert build(Outer, "engine", settings_of(again)) == outer
    assert again.engine == "outer" and again.pixel == 1.5 and again.invert
    assert again.particles == Path("p.star").absolute()
