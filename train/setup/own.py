"""A model and data sets of your own, from Python."""

from contextlib import ExitStack
from dataclasses import replace

import torch
from torch.utils.data import Dataset

from data.loading.loader import OwnImages
from data.pipeline import DataPipeline, LoadingOptions, dataset_pipeline
from train.checkpoint import resume
from train.config.metrics import choose_metric
from train.config.record import check_output_dir, is_run
from train.config.schema import Config, DataConfig, ModelConfig, RecipeConfig, RunConfig
from train.distributed.collectives import on_rank_zero
from train.distributed.parallel import replicate
from train.loss import LossSum, check_is_sum, cross_entropy_sum
from train.optim import build_schedule
from train.optimizers.schedules import Schedule
from train.output.run_output import RunOutput
from train.precision import choose_compute
from train.setup.inputs import make_plan
from train.setup.job import describe, open_output
from train.state import Best, TrainState
from train.system.console import say
from train.system.lock import Lock


def own_run(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Dataset,
    validation: Dataset,
    label_names: list[str],
    run: RunConfig,
    recipe: RecipeConfig,
    schedule: Schedule | None = None,
    loss_sum_fn: LossSum = cross_entropy_sum,
    fingerprint: str | None = None,
) -> tuple[TrainState, DataPipeline, RunOutput]:
    """What `fit` needs to train a model of your own on data of your own, with checkpoints, `best` and exact resume.

    Args:
        model: uint8 images [n, 3, h, w] -> logits [n, classes].
        optimizer: of its parameters.
        train: map-style; item i is a uint8 image [3, h, w] and the index of its class.
        validation: likewise.
        label_names: of the classes, by index.
        run: `output_dir` must be set; `resume_from_checkpoint="auto"` continues the run in it.
        recipe: how long to train, and how often to log, evaluate and save.
        schedule: by default the one that `recipe` names.
        loss_sum_fn: the loss, summed over images.
        fingerprint: identity of the data, which a resume compares; by default `train.fingerprint()` if there is such.

    Raises:
        ConfigError: the folder holds another run, or the loss is not a sum.
    """
    config = Config(run, DataConfig(), ModelConfig(), recipe)
    check_output_dir(run.output_dir, resuming=run.resume_from_checkpoint is not None and is_run(run.output_dir))
    precision = choose_compute(run)
    plan = make_plan(recipe, len(train), run)
    options = LoadingOptions(recipe.per_device_eval_batch_size)
    images = OwnImages(train, run.seed), OwnImages(validation, run.seed)
    data = dataset_pipeline(*images, plan, precision.device, label_names, options, say)
    own = getattr(train, "fingerprint", None)
    data = replace(data, fingerprint=fingerprint or (own() if callable(own) else own))
    check_is_sum(loss_sum_fn, len(label_names))
    best = Best(*choose_metric(recipe.metric_for_best_model, recipe.greater_is_better, label_names))
    model.to(precision.device, precision.dtype)
    schedule = schedule or build_schedule(optimizer, recipe, plan.total_updates)
    state = TrainState(model, optimizer, schedule, precision, best, loss_sum_fn, replicate(model))
    decided = describe(config, precision, data)
    with ExitStack() as after_failure:
        lock = after_failure.enter_context(Lock())
        checkpoint = on_rank_zero(lambda: resume.find_checkpoint(run, lock))
        output = open_output(config, state, decided, checkpoint, lock, weights_loaded=False)
        after_failure.pop_all()  # from here on `output` releases the lock
    return state, data, output
