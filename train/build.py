"""From the configuration to the objects that `fit` works with. Automatic decisions are printed once and recorded."""

import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import torchvision
import transformers

from data.cache.prepared import CachePolicy
from data.cores import usable_cores
from data.loading.streaming import Streams
from data.pipeline import DataPipeline, LoadingOptions, stored_pipeline, streamed_pipeline
from data.plan import Plan, StreamPlan, batches_per_epoch
from data.reading.decode import Resize
from data.reading.splits import Splits
from data.sources import load_splits, load_streams
from models.vit import Classifier, LoadedModel, load_model
from train.checkpoint import resume
from train.checkpoint.folder import CheckpointFolder
from train.config.schema import Config, RecipeConfig, RunConfig
from train.distributed.collectives import on_rank_zero
from train.distributed.env import rank, world_size
from train.distributed.parallel import replicate, shard
from train.errors import ConfigError
from train.evaluate import choose_metric
from train.loss import check_is_sum, cross_entropy_sum
from train.optim import build_optimizer, build_schedule
from train.optimizers.lookup import check_optimizer
from train.optimizers.schedules import check_schedule, has_warmup
from train.output.run_folder import open_run
from train.output.run_output import RunOutput
from train.output.tracker import Tracker
from train.precision import Precision
from train.state import Best, TrainState
from train.system import hub
from train.system.compile import choose_compile, compile_model
from train.system.console import say
from train.system.device import choose_attention, choose_device, choose_precision, set_threads
from train.system.lock import Lock
from train.system.memory import keep_freed_memory
from train.system.profiler import profiled


@dataclass(frozen=True)
class Inputs:
    """What training and a mere evaluation have in common."""

    precision: Precision
    precision_reason: str
    checkpoint: Path | None  # to resume from
    loaded: LoadedModel
    splits: Splits | Streams
    data: DataPipeline
    preparation_seconds: float  # spent decoding images before the first update


@dataclass(frozen=True)
class Job:
    """A run that is ready to train."""

    state: TrainState
    data: DataPipeline
    output: RunOutput
    folder: Path
    decided: dict[str, Any]  # automatically, and what the bits of the run depend on besides its flags


def check_flags(config: Config) -> None:
    """Judge everything that can be judged without data and model, before either is touched.

    A warm-up that only the preset asked for gives way to a schedule that has none.

    Raises:
        ConfigError: a name, an argument or a device that cannot be used.
    """
    recipe = config.recipe
    check_optimizer(recipe.optim, recipe.optim_args, recipe.weight_decay)
    check_schedule(recipe.lr_scheduler_type, recipe.lr_scheduler_kwargs)
    if recipe.warmup_steps and not has_warmup(recipe.lr_scheduler_type):
        if "warmup_steps" in config.named:
            raise ConfigError(
                f"--warmup_steps {recipe.warmup_steps:g}: {recipe.lr_scheduler_type} has no warm-up; leave it out, or"
                " take one of get_scheduler's schedules"
            )
        say(f"schedule: {recipe.lr_scheduler_type} has no warm-up, so the preset's (--warmup_steps) is left out")
        recipe.warmup_steps = 0
    if not recipe.metric_for_best_model.rpartition("/")[0]:  # the metric of one class needs the data's class names
        choose_metric(recipe.metric_for_best_model, recipe.greater_is_better, [])


def load_inputs(config: Config, lock: Lock) -> Inputs:
    """Device, data and model, the model from a checkpoint if the run is resumed."""
    run = config.run
    precision, reason = choose_compute(run)
    offline = _is_offline(config)
    splits = _load_data(config, offline)
    checkpoint = on_rank_zero(lambda: resume.find_checkpoint(run, lock, say))
    torch.manual_seed(run.seed)  # before the model is built: the new head is drawn from it
    loaded = _load_classifier(config, checkpoint, splits.label_names, precision, offline)
    started = time.perf_counter()
    splits, data = _build_pipeline(config, splits, loaded.model, precision.device)
    return Inputs(precision, reason, checkpoint, loaded, splits, data, time.perf_counter() - started)


def build_job(config: Config, inputs: Inputs, lock: Lock) -> Job:
    """Optimizer, schedule and output; of a resumed run, as the checkpoint has them."""
    recipe, plan, model = config.recipe, inputs.data.plan, inputs.loaded.model
    state = build_state(model, recipe, inputs.precision, plan.total_updates, inputs.data.label_names)
    speed = _tune(config.run, state, plan, inputs.data)
    decided = _describe(config, inputs, speed)
    identity = resume.identity(config, decided, state.schedule.depends_on_length)
    log_bytes = resume.bring_back(state, inputs.checkpoint, identity, plan.total_updates, say)
    folder, run_id = on_rank_zero(lambda: open_run(config.run.output_dir, config.flat(), decided, lock))
    checkpoints = CheckpointFolder(
        folder, run_id, identity, recipe.save_total_limit, config.run.async_save, writes=rank() == 0
    )
    output = RunOutput(Tracker(folder, plan.total_updates, state.step, log_bytes), checkpoints)
    data = profiled(inputs.data, folder) if config.run.torch_profiler else inputs.data
    return Job(state, data, output, folder, decided)


def choose_compute(run: RunConfig) -> tuple[Precision, str]:
    """The device and precision to compute in, and why. Sets up threads and TF32.

    Raises:
        ConfigError: what was asked for is not available here.
    """
    device = choose_device(run.device)
    name, reason = choose_precision(run.precision, device)
    if run.fsdp:
        name, reason = _for_shards(name, reason, run)
    if run.tf32 and device.type != "cuda":
        raise ConfigError(f"--tf32 true: is a mode of CUDA's matrix units, and this is {device}")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if run.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = run.tf32  # torch's own default is yes, for convolutions only
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else set_threads()
    say(f"device: {device} ({where}), {name}: {reason}")
    return Precision(name, device), reason


def _for_shards(name: str, reason: str, run: RunConfig) -> tuple[str, str]:
    if world_size() == 1:
        raise ConfigError("--fsdp true: shards over several processes; start them with torchrun --nproc-per-node=N")
    if run.torch_compile == "on":
        raise ConfigError("--torch_compile on: does not work on a sharded model; drop it, or --fsdp")
    if name != "fp16":
        return name, reason
    if run.precision == "fp16":
        raise ConfigError("--precision fp16: its scaler does not support shards; bf16 or fp32 work with --fsdp")
    return "bf16", "the scaler of fp16 does not support shards"


def _is_offline(config: Config) -> bool:
    """Whether a Hub name is to be loaded while the Hub cannot be reached."""
    if not (hub.is_hub_name(config.data.dataset) or hub.is_hub_name(config.model.model)):
        return False
    unreachable = hub.why_unreachable()
    if unreachable:
        say(f"{unreachable}: only what its local cache holds can be loaded")
    return unreachable is not None


def _load_data(config: Config, offline: bool) -> Splits | Streams:
    """Both splits; no image has been looked at yet."""
    data, run = config.data, config.run
    options = {
        "config_name": data.dataset_config_name,
        "image_column": data.image_column_name,
        "label_column": data.label_column_name,
        "cache_dir": run.cache_dir,
        "offline": offline,
    }
    if data.streaming:
        return load_streams(data.dataset, **options)
    return load_splits(
        data.dataset,
        **options,
        validation_fraction=data.train_val_split,
        max_train_samples=data.max_train_samples,
        max_eval_samples=data.max_eval_samples,
        seed=run.seed,
    )


def _load_classifier(
    config: Config, checkpoint: Path | None, label_names: list[str], precision: Precision, offline: bool
) -> LoadedModel:
    """The model on its device, in the precision's dtype."""
    run, name = config.run, str(checkpoint or config.model.model)
    attention = choose_attention(precision.device, precision.name)
    options = {"attention": attention, "cache_dir": run.cache_dir, "offline": offline}
    # Loaded as float32 and then widened, so that a new head is the same draw in every precision.
    loaded = load_model(name, label_names, **options)
    if precision.name == "fp64" and not loaded.new_head:  # it may have been saved in float64
        loaded = load_model(name, label_names, dtype=precision.dtype, **options)
    model = loaded.model.to(precision.device)
    model.vit.to(precision.dtype)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    size = model.vit.config.image_size
    say(f"model: {'; '.join([name, *loaded.notes])}; {millions:.1f} M parameters, {size} pixels, {attention} attention")
    if run.fsdp:
        shard(model, model.blocks)
    return loaded


def _build_pipeline(
    config: Config, splits: Splits | Streams, model: Classifier, device: torch.device
) -> tuple[Splits | Streams, DataPipeline]:
    data, recipe, run = config.data, config.recipe, config.run
    wanted = model.preprocessing
    resize = Resize(wanted.height, wanted.width, wanted.interpolation)
    if isinstance(splits, Streams):
        sizes = "images read while training"
        asked = data.dataloader_num_workers
        threads = usable_cores() if asked == "auto" else max(1, int(asked))
        plan = make_stream_plan(recipe, splits.train.samples, run)
        pipeline = streamed_pipeline(
            splits, plan, resize, device, recipe.per_device_eval_batch_size, threads, data.shuffle_buffer
        )
    else:
        policy = CachePolicy(
            data.image_cache, data.cache_memory, data.cache_size, run.cache_dir, shared=world_size() > 1
        )
        options = LoadingOptions(
            recipe.per_device_eval_batch_size, data.dataloader_num_workers, data.dataloader_timeout
        )
        splits, pipeline = stored_pipeline(
            splits,
            lambda samples: make_plan(recipe, samples, run, data.dataloader_drop_last),
            resize,
            device,
            policy,
            options,
            data.skip_bad_images,
            say,
        )
        sizes = f"{len(splits.train)} training and {len(splits.validation)} validation images"
    for note in splits.notes:
        say(f"data: {note}")
    say(f"data: {splits.dataset}: {sizes}, {len(splits.label_names)} classes: {', '.join(splits.label_names)}")
    return splits, pipeline


def make_plan(recipe: RecipeConfig, samples: int, run: RunConfig, drop_last: bool = False) -> Plan:
    """The plan for a data set of known size; updates are counted as the Trainer counts them."""
    batch_size, accumulation = recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps
    batches = batches_per_epoch(samples, batch_size * world_size(), drop_last)
    updates_per_epoch = math.ceil(batches / accumulation)
    total = recipe.max_steps if recipe.max_steps > 0 else math.ceil(recipe.num_train_epochs * updates_per_epoch)
    return Plan(samples, batch_size, accumulation, total, run.seed, drop_last, rank(), world_size(), run.stop_after)


def make_stream_plan(recipe: RecipeConfig, samples: int | None, run: RunConfig) -> StreamPlan:
    """The plan for a stream, whose length may be unknown: --max_steps updates."""
    batch_size, accumulation = recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps
    return StreamPlan(
        batch_size, accumulation, recipe.max_steps, run.seed, samples, rank(), world_size(), run.stop_after
    )


def build_state(
    model: torch.nn.Module, recipe: RecipeConfig, precision: Precision, total_updates: int, label_names: list[str]
) -> TrainState:
    """Optimizer, schedule, loss and counters at update 0."""
    metric, greater_is_better = choose_metric(recipe.metric_for_best_model, recipe.greater_is_better, label_names)
    check_is_sum(cross_entropy_sum, len(label_names))
    optimizer = build_optimizer(model, recipe)
    schedule = build_schedule(optimizer, recipe, total_updates)
    best = Best(metric, greater_is_better)
    return TrainState(model, optimizer, schedule, precision, best, cross_entropy_sum, replicate(model))


def _tune(run: RunConfig, state: TrainState, plan: Plan | StreamPlan, data: DataPipeline) -> list[str]:
    """Switch the remaining fast paths on or off and print which are on; `run` keeps what was decided."""
    device, precision = state.precision.device, state.precision.name
    images = plan.total_updates * plan.batch_size * plan.accumulation  # of this process
    compiling, why = choose_compile(run.torch_compile, device, precision, images)
    run.torch_compile = "on" if compiling else "off"  # recorded, so that a resume computes the same bits
    if compiling:
        compile_model(state.raw_model.vit, plan.batch_size, device, plan.accumulation)
    fused = "fused " if state.optimizer.defaults.get("fused") else ""
    notes = [f"{'FSDP2' if run.fsdp else 'DDP'} over {plan.world} processes"] if plan.world > 1 else []
    notes += [
        *data.notes,
        f"{choose_attention(device, precision)} attention",
        f"{fused}{type(state.optimizer).__name__}",
        f"torch.compile {run.torch_compile} ({why})",
        f"checkpoints written {'in the background' if run.async_save else 'while training waits'}",
    ]
    if device.type == "cpu":
        notes.append(f"malloc {'keeps' if run.tune_malloc and keep_freed_memory() else 'returns'} freed memory")
    if device.type == "cuda":
        notes.append(f"TF32 {'on' if run.tf32 else 'off'}")
    say(f"speed: {'; '.join(notes if run.verbose else [note.partition(' (')[0] for note in notes])}")
    return notes


def _describe(config: Config, inputs: Inputs, speed: list[str]) -> dict[str, Any]:
    precision, splits, plan = inputs.precision, inputs.splits, inputs.data.plan
    return {
        "preset": config.run.preset,
        "preset_reason": config.preset_reason,
        "device": str(precision.device),
        "precision": precision.name,
        "precision_reason": inputs.precision_reason,
        "attention": choose_attention(precision.device, precision.name),
        "speed": speed,
        "dataset_fingerprint": splits.fingerprint(),
        "label_names": splits.label_names,
        "train_images": len(splits.train),
        "validation_images": len(splits.validation),
        "data_notes": splits.notes,
        "total_updates": plan.total_updates,
        "processes": plan.world,
        "preparation_seconds": inputs.preparation_seconds,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "transformers": transformers.__version__,
            "datasets": datasets.__version__,
        },
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
