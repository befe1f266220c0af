"""What goes wrong in the middle of a run is one line that says what to do."""

import signal

import pytest
import torch

from train.config.schema import RecipeConfig
from train.errors import RunError
from train.output.failures import explained
from train.system.signals import Interrupted


def too_much_for_torch():
    torch.empty(2**60)


def too_much_for_python():
    raise MemoryError


@pytest.mark.parametrize("fail", [too_much_for_torch, too_much_for_python])
def test_memory_that_runs_out_on_the_cpu_is_a_line_with_a_way_on(fail, tmp_path):
    said = r"out of memory: a new run with half .* --resume_from_checkpoint auto"
    with pytest.raises(RunError, match=said), explained(None, None, tmp_path, RecipeConfig()):
        fail()


def test_an_error_of_the_program_itself_is_not_explained_away(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"), explained(None, None, tmp_path, RecipeConfig()):
        raise RuntimeError("a bug")


def test_a_stop_while_the_results_are_written_says_how_to_finish(tmp_path, capsys):
    with pytest.raises(Interrupted), explained(None, None, tmp_path, RecipeConfig()):
        raise Interrupted(signal.SIGINT)
    assert f"to finish: plainloop train --output_dir {tmp_path}" in capsys.readouterr().out
