"""The real images and a real pretrained ViT, against what the Hugging Face Trainer 5.23 did with them."""

import json

import pytest

from tests.conftest import shared
from tests.running import records, run_process, same_tensors, weights


def reference(name):
    return {line["step"]: line for line in json.loads(shared(f"parity/{name}").read_text())["history"]}


def compare(out, updates):
    """Largest differences from the Trainer: of the gradient norm (relative), the loss, the learning rate."""
    expected, found = reference("trainer-deit-tiny-beans-fp64.json"), {}
    found = {line["step"]: line for line in records(out) if "loss" in line}
    pairs = [(found[step], expected[step]) for step in range(1, updates + 1)]
    return (
        max(abs(one["grad_norm"] - other["grad_norm"]) / other["grad_norm"] for one, other in pairs),
        max(abs(one["loss"] - other["loss"]) for one, other in pairs),
        max(abs(one["learning_rate"] - other["learning_rate"]) for one, other in pairs),
    )


def parity(out, beans, deit_tiny, updates):
    flags = ("--precision", "fp64", "--logging_steps", 1, "--stop_after", updates, "--output_dir", out)
    environment = {"OMP_NUM_THREADS": "2"}
    done = run_process("--model", deit_tiny, "--dataset", beans, *flags, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    return compare(out, updates)


@pytest.mark.slow
def test_the_first_updates_are_the_trainers_to_the_last_digits(beans, deit_tiny, tmp_path):
    """Order, pixels, head, loss, clipping, AdamW and schedule at once: a wrong one shows in the second update."""
    grad_norm, loss, learning_rate = parity(tmp_path / "run", beans, deit_tiny, 2)
    assert grad_norm < 1e-11 and loss < 1e-6 and learning_rate < 1e-12


@pytest.mark.slow
def test_forty_updates_are_the_trainers(beans, deit_tiny, tmp_path):
    """Fine-tuning doubles a rounding difference about every 1.4 updates; the reference is of another processor.

    On an AMD EPYC this loop and the Trainer itself are both 6.4e-6 from the reference at update 37, and equal to each
    other to the bit (docs/parity.md). So: 1e-6 for as long as every processor that was seen holds it, and after that
    no more than rounding can grow to.
    """
    grad_norms = parity(tmp_path / "run", beans, deit_tiny, 40)
    print(f"\nforty updates: {grad_norms}")
    out = tmp_path / "run"
    assert compare(out, 30)[0] < 1e-6
    grad_norm, loss, learning_rate = compare(out, 40)
    assert grad_norm < 1e-4 and loss < 1e-6 and learning_rate < 1e-12


@pytest.mark.slow
def test_the_whole_recipe_learns_beans(beans, deit_tiny, tmp_path):
    out = tmp_path / "run"
    done = run_process(
        *("--model", deit_tiny, "--dataset", beans, "--output_dir", out),
        env={"OMP_NUM_THREADS": "2"},
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    print("\n" + done.stdout)
    evaluations = {line["step"]: line for line in records(out) if "eval_loss" in line}
    assert sorted(evaluations) == [100, 200, 260]  # as the Trainer's
    assert max(line["eval_accuracy"] for line in evaluations.values()) >= 0.97
    best = json.loads((out / "trainer_state.json").read_text())["best_global_step"]
    assert same_tensors(weights(out), weights(out / f"checkpoint-{best}"))
    assert json.loads((out / "eval_results.json").read_text())["eval_loss"] == evaluations[best]["eval_loss"]
