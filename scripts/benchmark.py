"""The same recipe by the Hugging Face Trainer, by this loop, and by the bare updates, side by side on one machine.

    pip install -e ".[bench]"
    python scripts/benchmark.py --model ../shared/deit-tiny --dataset ../shared/beans
    python scripts/benchmark.py --model base --dataset ../shared/beans --max_steps 30 --repeats 1

Four contenders, alternating, each in a process of its own, `--repeats` times with seeds 42, 43, ...:

    a  the Trainer as in the notebook (fp16 on CUDA; on a CPU that means float32)
    b  the Trainer with its best flags (bf16 where the processor has units for it, two workers)
    c  python -m train.main, with its defaults
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.sizes import SIZES, vit_config

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"a": "Trainer, the notebook", "b": "Trainer, best flags", "c": "plainloop", "d": "limit"}


def main() -> None:
    """Parse, run every contender in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder, or tiny, small, base: random weights")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--contenders", default="abcd")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max_steps", type=int, default=-1, help="updates; default: four epochs")
    parser.add_argument(
        "--limit_updates", type=int, default=40, help="updates of the limit, of which the median counts"
    )
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
    with tempfile.TemporaryDirectory() as folder:
        if asked.model in SIZES:
            asked.model = make_model(asked.model, Path(folder) / "model")
        results = compete(asked, Path(folder))
    if asked.output:
        Path(asked.output).write_text(json.dumps(results, indent=1))
    show(results)


def compete(asked: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Every contender in turn, as often as asked."""
    results = []
    for repeat in range(asked.repeats):
        for name in asked.contenders:
            out = folder / f"{name}-{repeat}"
            out.mkdir()
            result = measure(name, asked, out, asked.seed + repeat)
            print(json.dumps(result), flush=True)
            results.append(result)
    return results


def measure(name: str, asked: argparse.Namespace, out: Path, seed: int) -> dict[str, Any]:
    """One process, its wall time and its peak memory."""
    steps = ["--max_steps", str(asked.max_steps)]
    if name == "c":
        batch = ["--per_device_train_batch_size", str(asked.batch_size)]
        where = ["--preset", "beans", "--model", asked.model, "--dataset", asked.dataset, "--output_dir", str(out)]
        command = [sys.executable, "-m", "train.main", *where, *batch, "--seed", str(seed), *asked.flags.split()]
        command += steps if asked.max_steps > 0 else []
    else:
        own = ["--run", name, "--seed", str(seed), "--folder", str(out), "--batch_size", str(asked.batch_size)]
        both = ["--model", asked.model, "--dataset", asked.dataset, "--limit_updates", str(asked.limit_updates)]
        command = [sys.executable, __file__, *own, *both, *steps, f"--flags={asked.flags}"]
    started = time.perf_counter()
    with out.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{name} failed:\n{(out / 'log').read_text()[-3000:]}")
    wall = {"process_seconds": time.perf_counter() - started, "peak_mib": usage.ru_maxrss / 1024}
    found = ours(out) if name == "c" else json.loads((out / "result.json").read_text())
    return {"contender": name, "seed": seed} | found | wall


def ours(out: Path) -> dict[str, Any]:
    """What a run of this project recorded of itself."""
    train = json.loads((out / "train_results.json").read_text())
    evaluation = json.loads((out / "eval_results.json").read_text())
    parts = {name: train[f"{name}_seconds"] for name in ("preparation", "data", "compute", "evaluation", "saving")}
    run = json.loads((out / "run.json").read_text())
    updates = run["total_updates"]
    # The data of every epoch after the first, which alone may have to warm something up.
    return {
        "seconds": sum(parts.values()),
        "images": train["train_samples_per_second"] * train["train_runtime"],
        "updates": updates,
        "accuracy": evaluation["eval_accuracy"],
        "precision": run["precision"],
        "parts": parts,
    }


def run_trainer(asked: argparse.Namespace) -> None:
    """The notebook's recipe, by the Trainer."""
    import datasets
    import torch
    from transformers import Trainer, ViTForImageClassification, ViTImageProcessor, set_seed

    from train.precision import choose_precision

    data = datasets.load_dataset(asked.dataset)
    names = data["train"].features["labels"].names
    processor = ViTImageProcessor.from_pretrained(asked.model)

    def transform(rows: dict[str, list]) -> dict[str, Any]:
        inputs = processor([image.convert("RGB") for image in rows["image"]], return_tensors="pt")
        return {"pixel_values": inputs["pixel_values"], "labels": rows["labels"]}

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    def accuracy(outcome: Any) -> dict[str, float]:
        return {"accuracy": float((outcome.predictions.argmax(-1) == outcome.label_ids).mean())}

    cuda = torch.cuda.is_available()
    best = asked.run == "b"
    device = torch.device("cuda" if cuda else "cpu")
    bf16 = best and (cuda or choose_precision("auto", device)[0] == "bf16")
    set_seed(asked.seed)
    model = ViTForImageClassification.from_pretrained(
        asked.model,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        ignore_mismatched_sizes=True,
    )
    data = data.with_transform(transform)
    trainer = Trainer(
        model=model,
        args=trainer_arguments(asked, best, cuda, bf16),
        data_collator=collate,
        compute_metrics=accuracy,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=processor,
    )
    started = time.perf_counter()
    trainer.train()
    evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
    if not evaluations or evaluations[-1]["step"] != trainer.state.global_step:  # ours evaluates at the end, too
        evaluations.append(trainer.evaluate())
    took = time.perf_counter() - started
    images = trainer.state.global_step * asked.batch_size
    if asked.max_steps < 0:
        images = 4 * len(data["train"])
    found = min(evaluations, key=lambda line: line["eval_loss"])["eval_accuracy"]
    precision = "bf16" if bf16 else "fp16" if cuda else "fp32"
    result = {"seconds": took, "images": images, "updates": trainer.state.global_step, "accuracy": found}
    (Path(asked.folder) / "result.json").write_text(json.dumps(result | {"precision": precision}))


def trainer_arguments(asked: argparse.Namespace, best: bool, cuda: bool, bf16: bool) -> Any:
    """The notebook's arguments; with `best`, its fastest."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=asked.folder,
        per_device_train_batch_size=asked.batch_size,
        num_train_epochs=4,
        max_steps=asked.max_steps,
        learning_rate=2e-4,
        fp16=cuda and not bf16,
        bf16=bf16,
        dataloader_num_workers=2 if best else 0,
        dataloader_persistent_workers=best,
        eval_strategy="steps",
        eval_steps=100,
        save_steps=100,
        logging_steps=10,
        save_total_limit=2,
        load_best_model_at_end=asked.max_steps < 0,
        remove_unused_columns=False,
        report_to="tensorboard",
        seed=asked.seed,
    )


def run_limit(asked: argparse.Namespace) -> None:
    """Our `train_step` on one batch in memory, in the precision and with the settings that our run chooses."""
    import torch

    from data.sources import load_splits
    from models.preprocessing import Normalize, read_preprocessing
    from models.vit import load_model
    from train.config.schema import RunConfig
    from train.loop import train_step
    from train.optim import build_optimizer
    from train.setup.inputs import choose_compute
    from train.system.compile import compile_network
    from train.system.device import choose_attention
    from train.system.memory import keep_freed_memory

    flags = asked.flags.split()
    named = dict(zip(flags[::2], flags[1::2], strict=True))
    precision, _ = choose_compute(RunConfig(precision=named.get("--precision", "auto")))
    names = load_splits(asked.dataset).label_names
    keep_freed_memory()
    torch.manual_seed(asked.seed)
    loaded = load_model(asked.model, names, attention=choose_attention(precision))
    network = loaded.network.to(precision.device).train()
    if named.get("--torch_compile") == "on":
        compile_network(network, asked.batch_size, precision.device)
    preprocessing = read_preprocessing(loaded.processor)
    size = (asked.batch_size, 3, preprocessing.height, preprocessing.width)
    batch = {
        "pixel_values": torch.randint(0, 256, size, dtype=torch.uint8, device=precision.device),
        "labels": torch.randint(0, len(names), (asked.batch_size,), device=precision.device),
        "index": torch.arange(asked.batch_size),
    }
    normalize = Normalize(preprocessing).to(precision.device)
    optimizer = build_optimizer(network, "adamw", None, 2e-4, 0.0)
    took = []
    together = 1 if precision.waits else 10  # where the host runs ahead of the device, it is waited for now and then
    for _ in range(math.ceil(asked.limit_updates / together) + 3):
        started = time.perf_counter()
        for _ in range(together):
            train_step(network, [batch], asked.batch_size, optimizer, precision, normalize, 1.0)
        precision.health.check(together)
        took.append((time.perf_counter() - started) / together)
    took = sorted(took[3:])  # the first ones allocate
    each = statistics.median(took)
    updates = asked.max_steps if asked.max_steps > 0 else 4 * math.ceil(len(load_splits(asked.dataset).train) / 16)
    result = {
        "seconds": each * updates,
        "images": updates * asked.batch_size,
        "updates": updates,
        "mean_update": statistics.mean(took),
        "quartiles": [took[len(took) // 4], took[3 * len(took) // 4]],
        "precision": precision.name,
        "flop_per_second": flop_of_an_update(network.config, asked.batch_size) / each,
    }
    (Path(asked.folder) / "result.json").write_text(json.dumps(result))


def flop_of_an_update(config: Any, batch_size: int) -> float:
    """Forward and backward passes of a ViT: 6 FLOP a weight and token, and 12 x tokens x width a token in attention."""
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    width = config.hidden_size
    weights = config.num_hidden_layers * (4 * width**2 + 2 * width * config.intermediate_size)
    attention = config.num_hidden_layers * 12 * tokens * width
    return batch_size * tokens * (6 * weights + attention)


def make_model(size: str, folder: Path) -> str:
    """A checkpoint folder of the size, with random weights."""
    from transformers import ViTForImageClassification, ViTImageProcessor

    ViTForImageClassification(vit_config(size)).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return str(folder)


def show(results: list[dict[str, Any]]) -> None:
    """A row a contender: medians, and ratios to each."""
    import torch

    print(f"\n{platform.machine()}, {processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    by_name = {name: [result for result in results if result["contender"] == name] for name in NAMES}
    by_name = {name: found for name, found in by_name.items() if found}
    rates = {name: median(found, lambda r: r["images"] / r["seconds"]) for name, found in by_name.items()}
    print(
        "| | precision | training, s | process, s | img/s | "
        + " | ".join(f"/ {name}" for name in rates)
        + " | peak MiB |"
    )
    print("|---|---|---|---|---|" + "---|" * len(rates) + "---|")
    for name, found in by_name.items():
        ratios = " | ".join(f"{rates[name] / rates[other]:.2f}" for other in rates)
        print(
            f"| {name}: {NAMES[name]} | {found[0]['precision']} | {median(found, lambda r: r['seconds']):.1f}"
            f" | {median(found, lambda r: r['process_seconds']):.1f} | {rates[name]:.2f} | {ratios}"
            f" | {median(found, lambda r: r['peak_mib']):.0f} |"
        )
    if by_name.get("c"):
        whole = median(by_name["c"], lambda r: r["seconds"])
        parts = by_name["c"][0]["parts"]
        shares = (f"{part} {median(by_name['c'], lambda r, p=part: r['parts'][p]) / whole:.1%}" for part in parts)
        print("plainloop's time:", ", ".join(shares))
        updates = median(by_name["c"], lambda r: r["images"] / (r["parts"]["data"] + r["parts"]["compute"]))
        against = f", {updates / rates['d']:.3f} of the limit" if "d" in rates else ""
        print(f"plainloop's updates alone: {updates:.2f} img/s{against}")
    for name in by_name.keys() & {"a", "b", "c"}:
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
