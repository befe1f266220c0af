"""The promise to people with a debugger: a breakpoint in the loop is hit, and what one would print is there."""

import os
import subprocess
import sys

import pytest

from tests.running import ROOT


def line_of(text):
    lines = (ROOT / "train" / "loop.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.slow
def test_pdb_stops_in_the_step_prints_loss_and_shape_and_goes_on_to_the_end(tmp_path):
    script = [
        f"break train/loop.py:{line_of('precision.scaler.scale(loss).backward()')}",
        "continue",
        "p loss",
        'p batch["pixel_values"].shape',
        "up",
        "p update, learning_rate",
        "clear 1",
        f"break train/loop.py:{line_of('state.count_update')}",
        "continue",
        "p step.grad_norm",
        "clear 2",
        "continue",
        "quit",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pdb", "-m", "train.main", "--preset", "debug", "--output_dir", str(tmp_path / "run")],
        input="\n".join(script) + "\n",
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout
    assert "tensor(1." in said and "grad_fn=" in said
    assert "torch.Size([8, 3, 32, 32])" in said
    assert "(1, 0.0)" in said  # the first update of a warm-up
    assert "done: " in said and (tmp_path / "run" / "model.safetensors").is_file()
