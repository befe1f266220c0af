"""R9: SIGTERM and Ctrl-C in every phase, to the process and to its group."""

import os
import signal
import time

import pytest

from tests.reliability.harness import RUN, finish, outcome, start, wait_for
from tests.reliability.kills import unbroken
from train.checkpoint.folder import list_checkpoints
from train.checkpoint.manifest import verify

CODE = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return unbroken(tmp_path_factory.mktemp("signals"), 1)


class PauseBefore:
    """Run in the child: at the first call of a function, say so by a file and wait until a signal has come."""

    def __init__(self, module, name, flag):
        self.module, self.name, self.flag = module, name, str(flag)

    def __call__(self):
        import importlib
        import pathlib
        import time

        module = importlib.import_module(self.module)
        original, flag = getattr(module, self.name), pathlib.Path(self.flag)

        def paused(*arguments, **options):
            if not flag.exists():
                flag.touch()
                time.sleep(0.5)  # a signal ends the sleep or sets its flag; then the call goes on
            return original(*arguments, **options)

        setattr(module, self.name, paused)


@pytest.mark.parametrize("to_group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("train.loop", "train_step"),
        ("train.loop", "evaluate"),
        ("train.checkpoint.folder", "save_model"),
        ("train.checkpoint.folder", "write_manifest"),
    ],
)
def test_a_signal_while_training_finishes_the_update_saves_and_says_how_to_go_on(
    module, name, number, to_group, tmp_path, expected
):
    out, log, flag = tmp_path / "run", tmp_path / "log", tmp_path / "flag"
    workers = ("--dataloader_num_workers", 2 if to_group else 0)
    process = start((*RUN, *workers, "--output_dir", out), PauseBefore(module, name, flag), log)
    wait_for(flag.exists)
    (os.killpg if to_group else os.kill)(process.pid, number)
    assert finish(process) == CODE[number]
    said = log.read_text()
    assert f"to continue: plainloop train --output_dir {out} --resume_from_checkpoint auto" in said
    assert signal.Signals(number).name in said and "Traceback" not in said
    newest = list_checkpoints(out)[0]
    verify(newest[1])
    assert f"stopped after update {newest[0]} of 40" in said
    assert finish(start(("--output_dir", out, "--resume_from_checkpoint", "auto"))) == 0
    assert outcome(out) == expected


@pytest.mark.parametrize("name", ["load_splits", "load_model"])
def test_a_signal_before_training_ends_the_program_and_leaves_nothing(name, tmp_path):
    out, log, flag = tmp_path / "run", tmp_path / "log", tmp_path / "flag"
    process = start((*RUN, "--output_dir", out), PauseBefore("train.setup.inputs", name, flag), log)
    wait_for(flag.exists)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 143
    assert "stopped by SIGTERM" in log.read_text() and "Traceback" not in log.read_text() and not out.exists()


def test_a_signal_while_reporting_costs_nothing(tmp_path, expected):
    out, flag = tmp_path / "run", tmp_path / "flag"
    process = start((*RUN, "--output_dir", out), PauseBefore("train.output.results", "write_model_card", flag))
    wait_for(flag.exists)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 143
    assert finish(start(("--output_dir", out, "--resume_from_checkpoint", "auto"))) == 0
    assert outcome(out) == expected and (out / "README.md").is_file()


class SleepInSave:
    """Run in the child: a save that takes for ever."""

    def __init__(self, flag):
        self.flag = str(flag)

    def __call__(self):
        import pathlib
        import time

        import train.checkpoint.folder

        original = train.checkpoint.folder.write_manifest

        def slow(folder, run_id, step, identity):
            if step == 8:
                pathlib.Path(self.flag).touch()
                time.sleep(60)
            original(folder, run_id, step, identity)

        train.checkpoint.folder.write_manifest = slow


def test_a_second_signal_ends_at_once_without_harm_to_what_is_saved(tmp_path, expected):
    out, flag = tmp_path / "run", tmp_path / "flag"
    process = start((*RUN, "--output_dir", out), SleepInSave(flag))
    wait_for(flag.exists)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.3)  # two that are pending at once are one
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process, seconds=10) == 143
    assert [step for step, _ in list_checkpoints(out)] == [4]
    verify(out / "checkpoint-4")
    assert finish(start(("--output_dir", out, "--resume_from_checkpoint", "auto"))) == 0
    assert outcome(out) == expected


def test_two_runs_do_not_write_in_one_folder(tmp_path):
    out, flag, log = tmp_path / "run", tmp_path / "flag", tmp_path / "log"
    first = start((*RUN, "--output_dir", out), SleepInSave(flag))
    wait_for(flag.exists)
    before = sorted(path.name for path in out.iterdir())
    assert finish(start(("--output_dir", out, "--resume_from_checkpoint", "auto"), log=log)) == 2
    assert "another process is writing in it" in log.read_text()
    assert before == sorted(path.name for path in out.iterdir())
    first.kill()
    first.join()
    assert finish(start(("--output_dir", out, "--resume_from_checkpoint", "auto"))) == 0
