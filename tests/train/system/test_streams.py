"""Who reads the output is not the disk: a run goes on when nobody can read it any more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT, run_here
from train.system.streams import printable

TRAIN = f"{sys.executable} -m train.main"
RUN = f"{TRAIN} --preset debug --max_steps 4 --output_dir"


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """A command line in bash, with the exit codes of a pipe's parts on the last line of standard error."""
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.reliability
@pytest.mark.parametrize(
    "output",
    ["| head -1; exit ${PIPESTATUS[0]}", ">&- 2>&- <&-", ">/dev/full"],
)
def test_a_run_whose_output_nobody_reads_trains_to_the_end(output, tmp_path):
    done = shell(f"{RUN} run {output}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()
    said = done.stderr.strip().splitlines()
    assert [line for line in said if "cannot be written any more" in line] == said if "full" in output else not said


def test_help_into_a_pipe_that_closes_says_nothing_more(tmp_path):
    done = shell(f"{TRAIN} --help | head -1; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("usage: ")


@pytest.mark.reliability
def test_a_name_that_the_terminal_cannot_show_is_shown_escaped(tmp_path):
    done = shell(f"{RUN} Blätter-鉄", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "Bl\\xe4tter" in done.stdout and (tmp_path / "Blätter-鉄" / "model.safetensors").is_file()


def test_a_path_that_is_not_utf_8_is_refused_in_one_line(tmp_path):
    done = shell(f"{RUN} $'\\xff'", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is not UTF-8" in done.stderr


@pytest.mark.reliability
def test_metrics_that_cannot_be_written_are_an_error(tmp_path):
    assert run_here("--preset", "debug", "--max_steps", 2, "--output_dir", tmp_path / "run") == 0
    done = shell(f"{TRAIN} --preset debug --model run --eval_only > /dev/full", tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: --eval_only: the metrics cannot be")


def test_names_that_others_wrote_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\x07\u202ec\r\x9b d\té鉄😀\n") == r"a\x1b[2Jb\x07\u202ec\r\x9b d" + "\té鉄😀\n"
