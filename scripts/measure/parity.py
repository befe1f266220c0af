"""Run the Hugging Face Trainer and this project's loop on the same data in float64, and compare update by update.

    pip install -e ".[bench]"
    python scripts/measure/parity.py --model PATH --dataset PATH --updates 40 [--reference trainer.json]

The Trainer runs as in the notebook (batch 16, 4 epochs, lr 2e-4, seed 42), stopped after the given updates. Float64
because float32 proves little: fine-tuning doubles a rounding difference about every 1.4 updates.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from trainer import build_trainer
from transformers import TrainerCallback

History = dict[int, dict[str, float]]  # by update: loss, grad_norm, learning_rate


class StopAfter(TrainerCallback):
    """Ends the Trainer early without changing its schedule, as --stop_after does here."""

    def __init__(self, updates: int) -> None:
        """Stop after that many updates."""
        self.updates = updates

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        """Ask for the stop."""
        control.should_training_stop = state.global_step >= self.updates


def run_trainer(model: str, dataset: str, updates: int) -> History:
    """What the Trainer logs in its first updates."""
    quiet = {"logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(model, dataset, torch.float64, 42, output_dir=folder, **quiet)
        trainer.add_callback(StopAfter(updates))
        trainer.train()
    return {line["step"]: line for line in trainer.state.log_history if "grad_norm" in line}


def run_loop(model: str, dataset: str, updates: int) -> History:
    """What `python -m train.main` logs in its first updates."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        flags = ["--precision", "fp64", "--device", "cpu", "--logging_steps", "1", "--stop_after", str(updates)]
        command = [sys.executable, "-m", "train.main", "--model", model, "--dataset", dataset, *flags]
        subprocess.run([*command, "--output_dir", str(out)], check=True)
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line for line in lines if "grad_norm" in line}


def compare(name: str, one: History, other: History) -> None:
    """Print the largest differences of `one` from `other`, and the first update that is 1e-6 away."""
    steps = sorted(one.keys() & other.keys())
    apart = {step: abs(one[step]["grad_norm"] - other[step]["grad_norm"]) / other[step]["grad_norm"] for step in steps}
    loss, rate = (max(abs(one[step][key] - other[step][key]) for step in steps) for key in ("loss", "learning_rate"))
    first = next((step for step in steps if apart[step] > 1e-6), None)
    print(
        f"{name}, {len(steps)} updates: grad_norm {max(apart.values()):.1e} relative, loss {loss:.1e},"
        f" learning_rate {rate:.1e}; first update beyond 1e-6: {first}"
    )


def main() -> None:
    """Run both and print how they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--reference", type=Path, help="a Trainer's log from another machine: {history: [...]}")
    asked = parser.parse_args()
    trainer = run_trainer(asked.model, asked.dataset, asked.updates)
    loop = run_loop(asked.model, asked.dataset, asked.updates)
    compare("loop against Trainer", loop, trainer)
    if asked.reference:
        reference = {line["step"]: line for line in json.loads(asked.reference.read_text())["history"]}
        compare("loop against reference", loop, reference)
        compare("Trainer against reference", trainer, reference)


if __name__ == "__main__":
    main()
