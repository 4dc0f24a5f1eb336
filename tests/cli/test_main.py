import importlib
import json
import subprocess
import sys
import types
import warnings

import pytest

from hetmodels import cli
from hetmodels.cli import common
from hetmodels.errors import DataError, UsageError


@pytest.fixture
def command(monkeypatch):
    """Install a command `probe` that runs the given function."""

    def install(run, add_arguments=lambda parser: None):
        module = types.ModuleType("hetmodels.cli.probe")
        module.run, module.add_arguments = run, add_arguments
        monkeypatch.setitem(cli.COMMANDS, "probe", "a probe")
        monkeypatch.setitem(sys.modules, "hetmodels.cli.probe", module)

    return install


def raising(error):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_listed_command_is_there_and_explains_itself(name, capsys):
    module = importlib.import_module(f"hetmodels.cli.{name}")
    assert callable(module.run)
    assert cli.main([name, "--help"]) == 0
    assert f"usage: hetmodels {name}" in capsys.readouterr().out


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["inspct"], "no command 'inspct'. Did you mean 'inspect'?"),
        (["--fast"], "no option '--fast'"),
        (["doctor", "--jsn"], "no option '--jsn'. Did you mean --json?"),
        (["doctor", "--js"], "no option '--js'. Did you mean --json?"),
        (["doctor", "extra"], "no argument 'extra'"),
    ],
)
def test_an_unknown_word_is_a_usage_error_with_the_nearest_known_one(words, expected, capsys):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert expected in err and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (DataError("a.star: no rows.\n  Give one with rows."), 1, "error: a.star: no rows. Give one with rows.\n"),
        (UsageError("wrong"), 2, "error: wrong\n"),
        (FileNotFoundError(2, "No such file or directory", "a.star"), 1, "error: a.star: No such file or directory.\n"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device. Free some space; a run goes on"),
        (MemoryError("12 GB"), 1, "error: out of memory: 12 GB."),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."), 1, "error: out of device memory:"),
        (KeyboardInterrupt(), 130, "error: interrupted.\n"),
    ],
)
def test_errors_become_one_line_and_a_status(command, capsys, error, status, text):
    command(raising(error))
    assert cli.main(["probe"]) == status
    out, err = capsys.readouterr()
    assert err.startswith(text) and err.count("\n") == 1 and out == ""


def test_traceback_is_shown_when_asked_for(command, capsys, monkeypatch):
    command(raising(DataError("bad")))
    assert cli.main(["probe", "--traceback"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("HETMODELS_TRACEBACK", "1")
    assert cli.main(["probe"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_the_program_is_not_disguised(command):
    command(raising(KeyError("x")))
    with pytest.raises(KeyError):
        cli.main(["probe"])


def test_an_interrupted_fit_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    words = ["fit", "a b.star", "-o", str(tmp_path / "run"), "--overwrite"]

    def interrupted():
        raise KeyboardInterrupt

    assert common.guarded(words, interrupted) == 130
    assert f"Go on with: hetmodels fit 'a b.star' -o {tmp_path}/run --resume" in capsys.readouterr().err


def test_warnings_and_log_lines_are_plain_lines_on_standard_error(command, capsys):
    def run(args):
        warnings.warn("5 particles make no map.", stacklevel=1)
        importlib.import_module("logging").getLogger("hetmodels.fit").info("read 5 particles")
        return 0

    command(run)
    assert cli.main(["probe"]) == 0
    out, err = capsys.readouterr()
    assert err == "warning: 5 particles make no map.\nread 5 particles\n" and out == ""


def test_a_command_that_calls_another_speaks_once(command, capsys):
    def run(args):
        importlib.import_module("logging").getLogger("inference.em").info("pass 1")
        return 0 if words else cli.main(["probe"])

    words = []
    command(lambda args: words.append(1) or cli.main(["probe"]) if not words else run(args))
    assert cli.main(["probe"]) == 0
    assert capsys.readouterr().err == "pass 1\n"


def test_json_holds_arrays_and_no_nan(command, capsys):
    import numpy as np

    def run(args):
        common.emit(args, {"fsc": np.array([1.0, np.nan]), "n": np.int64(3)}, "text")
        return 0

    command(run, common.json_option)
    assert cli.main(["probe", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"fsc": [1.0, None], "n": 3}
    assert cli.main(["probe"]) == 0
    assert capsys.readouterr().out == "text\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--pixel", "0"], "argument --pixel: must be above 0, got 0"),
        (["--box", "2"], "argument --box: must be at least 4, got 2"),
        (["--amplitude-contrast", "1.5"], "must be at least 0 and at most 1, got 1.5"),
        (["--voltage", "nan"], "must be above 0, got nan"),
        (["--pixel", "wide"], "argument --pixel: invalid float value: 'wide'"),
    ],
)
def test_particle_options_state_their_bounds(command, capsys, words, expected):
    command(lambda args: 0, common.particle_options)
    assert cli.main(["probe", *words]) == 2
    assert expected in capsys.readouterr().err


def test_outputs_are_not_replaced_unasked(tmp_path):
    file = tmp_path / "deep" / "a.star"
    assert common.new_output(file, overwrite=False) == file and file.parent.is_dir()
    file.write_text("x")
    with pytest.raises(UsageError, match="exists. Add --overwrite"):
        common.new_output(file, overwrite=False)
    assert common.new_output(file, overwrite=True) == file
    with pytest.raises(UsageError, match="is a folder"):
        common.new_output(tmp_path, overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        common.new_folder(file, overwrite=True)
    with pytest.raises(UsageError, match="is not empty"):
        common.new_folder(tmp_path, overwrite=False)
    assert common.new_folder(tmp_path / "new", overwrite=False).is_dir()


def test_a_reader_that_leaves_early_is_no_error():
    script = "from hetmodels import cli; import sys; sys.exit(cli.main(['--help']))"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
