import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from hetmodels.errors import DataError, UsageError
from hetmodels.run_directory import RunDirectory, replacing, require_space, to_json, write_text


def made(path):
    run = RunDirectory.create(path)
    write_text(run.config, "seed = 1\n")
    return run


def test_a_new_folder_is_made_with_its_parents_and_stays_empty(tmp_path):
    run = RunDirectory.create(tmp_path / "a" / "run")
    assert run.path.is_dir() and not list(run.path.iterdir())


def test_names_are_those_users_rely_on(tmp_path):
    run = RunDirectory(tmp_path)
    files = [run.config, run.log, run.trace, run.checkpoint, run.posterior, run.particles, run.metrics, run.report]
    names = "config.toml run.log trace.jsonl checkpoint posterior.nc particles.star metrics.json report.html"
    assert [file.name for file in files] == names.split()
    maps = [run.map, run.half1, run.half2, run.mask, run.sharpened, run.fsc, run.class_map(1), run.latent_map(1, 0)]
    names = "map.mrc half1.mrc half2.mrc mask.mrc map_sharpened.mrc fsc.star class_001.mrc latent_1_00.mrc"
    assert [file.name for file in maps] == names.split()
    assert all(file.parent == run.volumes == tmp_path / "volumes" for file in maps)


def test_an_earlier_run_is_neither_lost_nor_continued_unasked(tmp_path):
    run = made(tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run already. Add --resume"):
        RunDirectory.create(run.path)
    assert RunDirectory.create(run.path, resume=True).config.is_file()
    with pytest.raises(UsageError, match="one of them"):
        RunDirectory.create(run.path, resume=True, overwrite=True)


def test_overwriting_removes_the_runs_files_and_no_others(tmp_path):
    run = made(tmp_path / "run")
    run.checkpoint.mkdir()
    run.volumes.mkdir()
    write_text(run.map, "map")
    write_text(run.path / "notes.txt", "mine")
    RunDirectory.create(run.path, overwrite=True).drop_replaced()
    assert {file.name for file in run.path.iterdir()} <= {"notes.txt", ".lock"}
    assert (run.path / "notes.txt").read_text() == "mine"


def test_what_is_overwritten_comes_back_unless_the_new_run_has_a_checkpoint(tmp_path):
    run = made(tmp_path / "run")
    run.checkpoint.mkdir()
    write_text(run.checkpoint / "state", "old")
    before = run.config.read_text()
    again = RunDirectory.create(run.path, overwrite=True)
    write_text(again.config, "new")
    write_text(again.log, "killed here")
    again = RunDirectory.create(run.path, resume=True)
    assert again.config.read_text() == before and (run.checkpoint / "state").read_text() == "old"
    assert not again.replaced.exists() and not again.log.exists()
    again = RunDirectory.create(run.path, overwrite=True)
    write_text(again.config, "new")
    again.checkpoint.mkdir()
    assert RunDirectory.create(run.path, resume=True).config.read_text() == "new" and not again.replaced.exists()


def test_a_folder_or_file_that_is_no_run_is_left_alone(tmp_path):
    write_text(tmp_path / "thesis.tex", "years of work")
    with pytest.raises(UsageError, match="not empty and holds no run"):
        RunDirectory.create(tmp_path, overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        RunDirectory.create(tmp_path / "thesis.tex")
    with pytest.raises(UsageError, match="no run to resume"):
        RunDirectory.create(tmp_path / "new", resume=True)
    with pytest.raises(DataError, match="no such folder"):
        RunDirectory.open(tmp_path / "new")
    with pytest.raises(DataError, match="holds no run"):
        RunDirectory.open(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error_of_the_system(tmp_path):
    write_text(tmp_path / "file", "x")
    with pytest.raises(OSError):
        RunDirectory.create(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_write_permission(tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        RunDirectory.create(tmp_path / "run")


def test_space_is_checked_before_the_work(tmp_path):
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(DataError, match=r"needs 1000000000000\.00 GB of disk and only .* GB are free"):
        require_space(tmp_path / "not" / "yet", 10**21)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
    with replacing(tmp_path / "b.mrc") as temporary:
        assert temporary.suffix == ".mrc"
        temporary.write_text("new")
    assert (tmp_path / "b.mrc").read_text() == "new"


def test_the_lock_keeps_others_out_and_dies_with_its_process(tmp_path):
    run = made(tmp_path / "run")
    script = "import sys, time; from hetmodels.run_directory import RunDirectory as R\n"
    script += f"with R({str(run.path)!r}).lock(): print('locked', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(UsageError, match=f"in use by process {process.pid} on"), run.lock():
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 5
    while True:
        try:
            with run.lock():
                break
        except UsageError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_trace_rows_go_on_from_the_checkpoint(tmp_path):
    run = made(tmp_path / "run")
    with run.tracing() as trace:
        for step in range(4):
            trace.append({"step": step, "objective": float("nan") if step == 0 else -1.5})
    with open(run.trace, "a") as file:
        file.write('{"step": 4, "obj')
    assert [row["step"] for row in run.read_trace()] == [0, 1, 2, 3]
    with run.tracing(keep=2) as trace:
        trace.append({"step": 2})
    assert run.read_trace() == [{"step": 0, "objective": None}, {"step": 1, "objective": -1.5}, {"step": 2}]


def test_metrics_are_merged(tmp_path):
    run = made(tmp_path / "run")
    run.merge_metrics({"ari": 0.5, "resolution_05": 8.0})
    assert run.merge_metrics({"ari": 0.75}) == {"ari": 0.75, "resolution_05": 8.0}
    assert json.loads(run.metrics.read_text()) == {"ari": 0.75, "resolution_05": 8.0}


def test_the_log_holds_what_was_said_and_how_it_failed(tmp_path):
    run = made(tmp_path / "run")
    with pytest.raises(DataError), run.logging():
        logging.getLogger("inference.em").info("iteration 1")
        raise DataError("no particles")
    text = run.log.read_text()
    assert "INFO iteration 1" in text and "no particles" in text and "Traceback" in text
    assert not logging.getLogger("inference").handlers


def test_json_has_no_nan():
    assert to_json({"a": [1, float("inf")], 2: "é"}) == '{"a": [1, null], "2": "\\u00e9"}'
