"""The same recipe by the Hugging Face Trainer, by this loop, and by the bare updates, side by side on one machine.

    pip install -e ".[bench]"
    python scripts/measure/benchmark.py --model ../shared/deit-tiny --dataset ../shared/beans
    python scripts/measure/benchmark.py --model base --dataset ../shared/beans --max_steps 30 --repeats 1

Four contenders, alternating, each in a process of its own, `--repeats` times with seeds 42, 43, ...:

    a  the Trainer as in the notebook (fp16 on CUDA; on a CPU that means float32)
    b  the Trainer with its best flags (bf16 where the processor has units for it, two workers)
    c  python -m train.main, with its defaults; with --other FOLDER, also C: the same from another checkout
    d  the limit: the same updates on one batch in memory; no data, no evaluation, no saving

Times are of training with its evaluations and saves (for c with the preparation of images, which a and b do while they
train), and of the whole process. `--model tiny`, `small`, `base`: DeiT's and ViT-B/16's sizes with random weights.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from sizes import SIZES, random_batch, random_vit, ready_state, timed_update

from data.sources import load_splits
from models.loading import load_model
from train.config.schema import RunConfig
from train.precision import choose_compute
from train.system.compile import compile_model
from train.system.device import choose_attention, choose_precision
from train.system.memory import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = {"a": "Trainer, the notebook", "b": "Trainer, best flags", "c": "plainloop", "C": "the other", "d": "limit"}


def main() -> None:
    """Parse, run every contender in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder, or tiny, small, base: random weights")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--contenders", default="abcd")
    parser.add_argument("--other", type=Path, help="another checkout, for contender C")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max_steps", type=int, default=-1, help="updates; default: four epochs")
    parser.add_argument("--limit_updates", type=int, default=40, help="updates of d, whose median counts")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--flags", default="", help="more flags of ours, e.g. '--precision bf16'")
    parser.add_argument("--output", help="JSON file for every single result")
    parser.add_argument("--run", choices="abd", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=42, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        {"a": run_trainer, "b": run_trainer, "d": run_limit}[asked.run](asked)
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        if asked.model in SIZES:
            size, asked.model = asked.model, str(Path(folder) / "model")
            Path(asked.model).mkdir()
            random_vit(size).save_pretrained(Path(asked.model))
        for seed in range(asked.seed, asked.seed + asked.repeats):
            for name in asked.contenders:
                results.append(measure(name, asked, Path(folder) / f"{name}-{seed}", seed))
                print(json.dumps(results[-1]), flush=True)
    if asked.output:
        Path(asked.output).write_text(json.dumps(results, indent=1))
    show(results)


def measure(name: str, asked: argparse.Namespace, out: Path, seed: int) -> dict[str, Any]:
    """One process, its wall time and its peak memory."""
    out.mkdir()
    common = ["--model", asked.model, "--dataset", asked.dataset, "--seed", str(seed)]
    common += ["--max_steps", str(asked.max_steps)] if asked.max_steps > 0 else []
    if name in "cC":
        batch = ["--per_device_train_batch_size", str(asked.batch_size)]
        command = ["-m", "train.main", "--preset", "beans", *common, "--output_dir", str(out), *batch]
        command += asked.flags.split()
    else:
        batch = ["--batch_size", str(asked.batch_size), "--limit_updates", str(asked.limit_updates)]
        command = [__file__, "--run", name, "--folder", str(out), *common, *batch, f"--flags={asked.flags}"]
    log, started = out.with_suffix(".log"), time.perf_counter()
    with log.open("w") as file:
        where = asked.other.resolve() if name == "C" else ROOT
        environment = os.environ | {"PYTHONPATH": str(where)}
        process = subprocess.Popen([sys.executable, *command], cwd=where, stdout=file, stderr=file, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{name} failed:\n{log.read_text()[-3000:]}")
    wall = {"process_seconds": time.perf_counter() - started, "peak_mib": usage.ru_maxrss / 1024}
    found = ours(out) if name in "cC" else json.loads((out / "result.json").read_text())
    return {"contender": name, "seed": seed} | found | wall


def ours(out: Path) -> dict[str, Any]:
    """What a run of this project recorded of itself."""
    results, run = (json.loads((out / name).read_text()) for name in ("all_results.json", "run.json"))
    parts = {name: results[f"{name}_seconds"] for name in ("preparation", "data", "compute", "evaluation", "saving")}
    return {
        "seconds": sum(parts.values()),
        "images": results["train_samples_per_second"] * results["train_runtime"],
        "updates": run["total_updates"],
        "accuracy": results["eval_accuracy"],
        "precision": run["precision"],
        "parts": parts,
    }


def run_trainer(asked: argparse.Namespace) -> None:
    """The notebook's recipe by the Trainer; as contender b with its fastest flags."""
    from trainer import build_trainer  # needs the extra bench

    cuda, best = torch.cuda.is_available(), asked.run == "b"
    bf16 = best and (cuda or choose_precision("auto", torch.device("cpu"))[0] == "bf16")
    flags = {"fp16": cuda and not bf16, "bf16": bf16, "per_device_train_batch_size": asked.batch_size}
    flags |= {"dataloader_num_workers": 2, "dataloader_persistent_workers": True} if best else {}
    flags |= {"eval_strategy": "steps", "eval_steps": 100, "save_steps": 100, "save_total_limit": 2}
    flags |= {"logging_steps": 10, "report_to": "tensorboard", "load_best_model_at_end": asked.max_steps < 0}
    where = {"output_dir": asked.folder, "max_steps": asked.max_steps}
    trainer = build_trainer(asked.model, asked.dataset, torch.float32, asked.seed, **where, **flags)
    started = time.perf_counter()
    trainer.train()
    evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
    if not evaluations or evaluations[-1]["step"] != trainer.state.global_step:  # ours evaluates at the end, too
        evaluations.append(trainer.evaluate())
    took, updates = time.perf_counter() - started, trainer.state.global_step
    images = updates * asked.batch_size if asked.max_steps > 0 else 4 * len(trainer.train_dataset)
    found = min(evaluations, key=lambda line: line["eval_loss"])["eval_accuracy"]
    precision = "bf16" if bf16 else "fp16" if cuda else "fp32"
    result = {"seconds": took, "images": images, "updates": updates, "accuracy": found, "precision": precision}
    (Path(asked.folder) / "result.json").write_text(json.dumps(result))


def run_limit(asked: argparse.Namespace) -> None:
    """Our `train_step` on one batch in memory, in the precision and with the settings that our run chooses."""
    flags = asked.flags.split()
    named = dict(zip(flags[::2], flags[1::2], strict=True))
    precision = choose_compute(RunConfig(precision=named.get("--precision", "auto")))
    keep_freed_memory()
    splits = load_splits(asked.dataset)
    attention = choose_attention(precision.device, precision.name)
    model = load_model(asked.model, splits.label_names, attention=attention).model
    state = ready_state(model, precision)
    if named.get("--torch_compile") == "on":
        compile_model(model.vit, asked.batch_size, precision.device)
    batch = random_batch(state, asked.batch_size, len(splits.label_names))
    together = 1 if precision.checks_every_update else 10  # where the CPU runs ahead of the GPU, wait now and then
    rounds = math.ceil(asked.limit_updates / together) + 3
    took = sorted([timed_update(state, batch, together) for _ in range(rounds)][3:])  # the first ones allocate
    each = statistics.median(took)
    updates = asked.max_steps if asked.max_steps > 0 else 4 * math.ceil(len(splits.train) / asked.batch_size)
    result = {
        "seconds": each * updates,
        "images": updates * asked.batch_size,
        "updates": updates,
        "mean_update": statistics.mean(took),
        "quartiles": [took[len(took) // 4], took[3 * len(took) // 4]],
        "precision": precision.name,
        "flop_per_second": flop_per_update(model.vit.config, asked.batch_size) / each,
    }
    (Path(asked.folder) / "result.json").write_text(json.dumps(result))


def flop_per_update(config: Any, batch_size: int) -> float:
    """Forward and backward passes of a ViT: per token, 6 FLOP a weight and 12 x tokens x width in attention."""
    tokens, width = (config.image_size // config.patch_size) ** 2 + 1, config.hidden_size
    weights = config.num_hidden_layers * (4 * width**2 + 2 * width * config.intermediate_size)
    return batch_size * tokens * (6 * weights + config.num_hidden_layers * 12 * tokens * width)


def show(results: list[dict[str, Any]]) -> None:
    """A row per contender: medians, and ratios to each."""
    print(f"\n{platform.machine()}, {processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    by_name = {name: found for name in NAMES if (found := [r for r in results if r["contender"] == name])}
    rates = {name: median(found, lambda r: r["images"] / r["seconds"]) for name, found in by_name.items()}
    ratios = " | ".join(f"/ {name}" for name in rates)
    print(f"| | precision | training, s | process, s | img/s | {ratios} | peak MiB |")
    print("|---|---|---|---|---|" + "---|" * len(rates) + "---|")
    for name, found in by_name.items():
        seconds, process, peak = (
            median(found, lambda r, k=k: r[k]) for k in ("seconds", "process_seconds", "peak_mib")
        )
        ratios = " | ".join(f"{rates[name] / rates[other]:.2f}" for other in rates)
        row = f"{NAMES[name]} | {found[0]['precision']} | {seconds:.1f} | {process:.1f} | {rates[name]:.2f} | {ratios}"
        print(f"| {name}: {row} | {peak:.0f} |")
    if runs := by_name.get("c"):
        whole = median(runs, lambda r: r["seconds"])
        shares = (f"{p} {median(runs, lambda r, p=p: r['parts'][p]) / whole:.1%}" for p in runs[0]["parts"])
        print("plainloop's time:", ", ".join(shares))
        updates = median(runs, lambda r: r["images"] / (r["parts"]["data"] + r["parts"]["compute"]))
        against = f", {updates / rates['d']:.3f} of the limit" if "d" in rates else ""
        print(f"plainloop's updates alone: {updates:.2f} img/s{against}")
    for name in by_name.keys() - {"d"}:
        print(f"accuracy of {name}:", *(f"{result['accuracy']:.4f}" for result in by_name[name]))


def median(results: list[dict[str, Any]], value: Any) -> float:
    """Of a value of each result."""
    return statistics.median(map(value, results))


def processor_name() -> str:
    """As Linux calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")


if __name__ == "__main__":
    main()
