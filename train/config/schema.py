"""Every setting of a run: documented fields in five sections, each checked when it is made.

A flag that the Hugging Face Trainer also has carries its name and default. The recipes that differ from those
defaults are in `train/config/presets.py`. Only `train/main.py` and `train/setup/` see the five sections together.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from train.config.reporting import tracker_names
from train.errors import ConfigError

HUGE = 2**62  # torch takes 64 bits, and epochs count up from the seed
MOST_WORKERS = 1024  # more than any machine has cores; a record that asks for a million must not start them


def flag(default: Any, help: str, heading: str | None = None) -> Any:
    """A field with its documentation, which `--help` shows; `heading` begins a group of flags there."""
    return field(default=default, metadata={"help": help, "heading": heading})


@dataclass
class RunConfig:
    """Which run this is, where it writes, and what it computes on."""

    preset: Literal["auto", "beans", "best", "leaves", "debug", "trainer"] = flag(
        "auto",
        "Recipe to start from. auto: beans if the Hub or its cache can be reached, or a dataset or model is named; else"
        " leaves. trainer: the bare defaults of the Hugging Face Trainer.",
        heading="run",
    )
    output_dir: str | None = flag(None, "Folder of the run, new or empty. Default: runs/DATASET-TIME.")
    resume_from_checkpoint: str | None = flag(
        None,
        "auto: continue the run in --output_dir (else the newest in runs/) from its newest sound checkpoint, or start"
        " it if there is none. Or the path of a checkpoint-N folder.",
    )
    stop_after: int | None = flag(
        None, "Stop, with a checkpoint, after this many updates; the schedule stays that of the whole run."
    )
    eval_only: bool = flag(False, "Evaluate --model on the validation split, print the metrics as JSON, train nothing.")
    test_at_end: bool = flag(
        True,
        "At the end, evaluate the best model on the test split, if there is one: once, and no choice depends on it.",
    )
    seeds: str | None = flag(
        None, "Train once with each of these seeds, such as 42,43,44, in folders inside --output_dir, and compare."
    )
    sweep: str | None = flag(
        None, "The same for values of other flags, such as learning_rate=1e-4,2e-4: every combination, one table."
    )
    folds: int | None = flag(
        None,
        "With --freeze backbone: also cross-validate the head on the training images, in this many folds.",
    )
    seed: int = flag(42, "Of the new head, the order of the images and everything else random.")
    cache_dir: str | None = flag(None, "Where the Hub libraries keep downloads and tables. Default: their own caches.")
    debug: bool = flag(False, "Show the traceback of an error.")
    verbose: bool = flag(False, "Print the reason for every decision about speed; run.json has them in any case.")
    device: str = flag(
        "auto", "auto (cuda, else mps, else cpu), or a torch device such as cuda:1.", heading="device and speed"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = flag(
        "auto",
        "auto: fp16 with a GradScaler on CUDA; bf16 on a CPU with AMX or AVX512-BF16; else fp32. Weights stay fp32,"
        " or fp64 for fp64, which is for comparing algorithms.",
    )
    tf32: bool = flag(False, "Let CUDA multiply float32 matrices in TF32: faster, with 10 bits of mantissa.")
    torch_compile: Literal["auto", "on", "off"] = flag(
        "auto",
        "Compile the model for full training batches. auto: in bf16 on a CPU, if the run trains on at least 40,000"
        " images, which pays for the minute of compiling twice over.",
    )
    tune_malloc: bool = flag(True, "On a CPU with glibc: keep freed memory for the next update.")
    async_save: bool = flag(True, "Copy the state, then write the checkpoint while training continues.")
    report_to: str = flag(
        "tensorboard",
        "Trackers, besides metrics.jsonl: tensorboard, wandb, mlflow, several with commas; all that are installed; or"
        " none.",
    )
    torch_profiler: bool = flag(False, "Trace updates 3 to 5 of this start into OUTPUT_DIR/profile/trace.json.")
    fsdp: bool = flag(False, "Under torchrun: shard weights, gradients and optimizer state over the processes (FSDP2).")
    ddp_timeout: int = flag(1800, "Under torchrun: seconds after which a process that does not answer is given up.")

    def __post_init__(self) -> None:
        """Check the numbers."""
        _at_least(self, 0, "seed")
        _at_least(self, 1, "stop_after", "ddp_timeout")
        _at_least(self, 2, "folds")
        tracker_names(self.report_to)

    @property
    def several(self) -> bool:
        """Whether this start trains several runs, each in a process of its own."""
        return self.seeds is not None or self.sweep is not None

    @property
    def trackers(self) -> list[str]:
        """Names of the trackers that --report_to asks for."""
        return tracker_names(self.report_to)


@dataclass
class DataConfig:
    """What to train on, and how it is read."""

    dataset: str | None = flag(
        None,
        "Hub name, folder in the Hub's parquet layout, image folder (train/CLASS/*.jpg, or with metadata.csv), address"
        " of either (s3://, gs://, hf://, https://), or builtin:leaves.",
        heading="data",
    )
    train_dir: str | None = flag(
        None, "Folder of the train split inside --dataset, where the names of its folders do not say."
    )
    validation_dir: str | None = flag(None, "The same for the validation split.")
    test_dir: str | None = flag(None, "The same for the test split, which is neither trained nor validated on.")
    dataset_config_name: str | None = flag(None, "Which configuration of a dataset that has several.")
    image_column_name: str | None = flag(None, "Column of the images, if the column types do not say.")
    label_column_name: str | None = flag(None, "Column of the classes, if the column types do not say.")
    train_val_split: float = flag(
        0.15, "Share of each class held out for validation where the dataset has no validation split."
    )
    split_seed: int | None = flag(
        None,
        "Draws the images that are held out, the subsets and the built-in leaves. Default: --seed; with --seeds the"
        " default seed, so that all are judged on the same images.",
    )
    max_train_samples: int | None = flag(None, "Train on a seeded random subset of this many images.")
    max_eval_samples: int | None = flag(None, "Evaluate on a seeded random subset of this many images.")
    streaming: bool = flag(
        False,
        "Read the data while training and never store it, for data larger than the disk. Needs --max_steps.",
    )
    shuffle_buffer: int = flag(1000, "With --streaming: number of images among which the next one is drawn.")
    skip_bad_images: bool = flag(False, "Leave out images that cannot be decoded, and record which.")
    image_cache: Literal["auto", "memory", "disk", "none"] = flag(
        "auto",
        "Where images are kept once they are decoded and resized. auto: in memory if they fit in --cache_memory, else"
        " in a memory-mapped file if they fit in --cache_size, else nowhere: then each epoch decodes them again.",
        heading="image cache and workers",
    )
    cache_memory: float = flag(2.0, "GiB of memory that prepared images may take.")
    cache_size: float = flag(32.0, "GiB of disk that prepared images of all runs together may take.")
    dataloader_num_workers: str = flag(
        "auto",
        "Processes that prepare batches; 0: the main process does. auto: 0 with an image cache and without"
        " augmentation, else by how long preparing takes here.",
    )
    dataloader_drop_last: bool = flag(False, "Drop the last, short batch of every epoch.")
    dataloader_timeout: int = flag(
        120, "Seconds after which a worker that delivers nothing has failed; 0 waits forever."
    )

    def __post_init__(self) -> None:
        """Check the numbers."""
        _at_least(self, 1, "max_train_samples", "max_eval_samples", "shuffle_buffer")
        _at_least(self, 0, "split_seed", "dataloader_timeout", "cache_memory", "cache_size")
        workers = str(self.dataloader_num_workers)
        if workers != "auto" and not (workers.isdecimal() and len(workers) < 5 and int(workers) <= MOST_WORKERS):
            most = f"at most {MOST_WORKERS}"
            raise ConfigError(f"--dataloader_num_workers {workers}: must be auto, or a number of at least 0 and {most}")
        if not 0 < self.train_val_split < 1:
            raise ConfigError(f"--train_val_split {self.train_val_split}: must lie between 0 and 1")


@dataclass
class ModelConfig:
    """What to fine-tune."""

    model: str | None = flag(
        None, "Hub name, checkpoint folder, or from scratch: builtin:small, builtin:tiny.", heading="model"
    )
    model_revision: str | None = flag(None, "Branch, tag or commit of a model on the Hub. Default: its main branch.")
    image_size: int | None = flag(
        None,
        "Side in pixels of the images that the model takes, a multiple of its patch size; position embeddings are"
        " interpolated. Default: as the checkpoint was trained.",
    )
    freeze: str | None = flag(
        None, "backbone: train the head alone. A number N: keep the embeddings and the first N blocks as they are."
    )
    gradient_checkpointing: bool = flag(
        False, "Compute activations again in the backward pass: a third slower, in far less memory."
    )

    def __post_init__(self) -> None:
        """Check the numbers."""
        _at_least(self, 1, "image_size")
        if self.freeze not in (None, "backbone") and not (self.freeze.isdecimal() and 0 < int(self.freeze) < 1000):
            raise ConfigError(f"--freeze {self.freeze}: must be backbone, or a number of blocks")


@dataclass
class AugmentConfig:
    """What training does to images and labels. Evaluation sees them as they are."""

    augment: Literal["none", "flip", "flip_both", "trivial", "rand", "auto"] = flag(
        "none",
        "flip: mirror half of the images; flip_both: also upside down. trivial, rand, auto: TrivialAugmentWide,"
        " RandAugment, AutoAugment, after a flip.",
        heading="augmentation and rare classes",
    )
    augment_magnitude: int = flag(9, "How strong the operations of --augment rand are, from 0 to 30.")
    random_resized_crop: float | None = flag(
        None, "Train on random crops of at least this share of the image, resized to the size that the model takes."
    )
    random_erasing: float = flag(0.0, "Share of the images in which a random rectangle is painted over.")
    mixup: float = flag(0.0, "Blend pairs of images and their labels: alpha of the Beta distribution, such as 0.2.")
    cutmix: float = flag(0.0, "Paste a part of one image into another: alpha, such as 1. With --mixup: one of the two.")
    label_smoothing: float = flag(0.0, "Share of every label that is spread over all classes.")
    class_weights: str | None = flag(
        None, "balanced: each class weighs the same in the loss, however rare. Or by name: healthy=1,bean_rust=2."
    )
    logit_adjustment: float = flag(
        0.0,
        "While training, add this times the logarithm of its share of the images to the logit of each class, so that"
        " rare classes get a wider margin. Such as 1.",
    )
    sampler: Literal["shuffled", "balanced"] = flag(
        "shuffled", "balanced: draw every class equally often, with replacement, instead of every image once an epoch."
    )

    def __post_init__(self) -> None:
        """Check the numbers."""
        _at_least(self, 0, "mixup", "cutmix", "logit_adjustment")
        if self.logit_adjustment > 10:
            raise ConfigError(f"--logit_adjustment {self.logit_adjustment:g}: must be at most 10; 1 is usual")
        for name in ("random_erasing", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: must lie between 0 and 1")
        if self.random_resized_crop is not None and not 0 < self.random_resized_crop <= 1:
            raise ConfigError(f"--random_resized_crop {self.random_resized_crop}: must be more than 0, at most 1")
        if not 0 <= self.augment_magnitude <= 30:
            raise ConfigError(f"--augment_magnitude {self.augment_magnitude}: must lie between 0 and 30")


@dataclass
class RecipeConfig:
    """The recipe: how long, which optimizer and schedule, and how often to log, evaluate and save."""

    num_train_epochs: float = flag(3.0, "Epochs to train; may be a fraction.", heading="recipe")
    max_steps: int = flag(-1, "Updates to train; if positive, it replaces --num_train_epochs.")
    min_steps: int = flag(0, "Train at least this many updates: more epochs where images are few.")
    per_device_train_batch_size: int = flag(8, "Images per device and micro-batch in training.")
    per_device_eval_batch_size: int = flag(8, "Images per device and batch in evaluation.")
    gradient_accumulation_steps: int = flag(1, "Micro-batches whose gradients are added up for one update.")
    optim: str = flag("adamw", "Class of torch.optim by name (adamw, sgd, nadam, muon, ...), or package.module:Class.")
    optim_args: str | None = flag(None, "Its arguments: momentum=0.9,nesterov=true")
    learning_rate: float = flag(5e-5, "Peak learning rate.")
    weight_decay: float = flag(0.0, "Weight decay; biases and LayerNorms are spared.")
    layer_decay: float = flag(
        1.0, "Learning rate of each block as a share of the next one's; the head has --learning_rate. Such as 0.75."
    )
    max_grad_norm: float = flag(1.0, "Clip the global gradient norm to this; 0 does not clip.")
    ema: float | None = flag(
        None, "Evaluate and export an exponential moving average of the weights with this decay, such as 0.99."
    )
    lr_scheduler_type: str = flag(
        "linear", "Schedule of transformers.get_scheduler, class of torch.optim.lr_scheduler, or package.module:Class."
    )
    lr_scheduler_kwargs: str | None = flag(None, 'Its arguments: num_cycles=2 or {"num_cycles": 2}')
    warmup_steps: float = flag(0, "Updates of linear warm-up; below 1: a share of all updates.")
    early_stopping_patience: int | None = flag(
        None, "End after this many evaluations in a row without a new best.", heading="ending early"
    )
    until: str | None = flag(None, "End once an evaluation reaches this, such as eval_accuracy=0.98.")
    max_time: str | None = flag(None, "End, with an evaluation, after 90s, 10m or 2h of training.")
    logging_steps: int | Literal["epoch"] = flag(
        500, "Log every N updates, or at the end of every epoch.", heading="logging, evaluation, checkpoints"
    )
    eval_steps: int | Literal["epoch"] = flag(
        500,
        "Evaluate every N updates or every epoch, and at the end. If you name the data but not this, and a run would"
        " have fewer than three evaluations, it is epoch.",
    )
    save_steps: int | Literal["epoch"] = flag(
        500, "Save every N updates or every epoch, at the end, and at a new best. A multiple of eval_steps."
    )
    save_total_limit: int | None = flag(
        None, "Number of checkpoints to keep; the best and the newest are always among them."
    )
    metric_for_best_model: str = flag("loss", "Validation metric that chooses the best model, e.g. accuracy, f1_macro.")
    greater_is_better: bool | None = flag(None, "Whether a higher value is better. Default: yes, unless it is a loss.")

    def __post_init__(self) -> None:
        """Check the numbers, and that every saved checkpoint has been evaluated."""
        _at_least(
            self,
            1,
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "eval_steps",
            "save_steps",
            "save_total_limit",
        )
        _at_least(self, 0, "min_steps", "weight_decay", "max_grad_norm", "warmup_steps")
        _at_least(self, 1, "early_stopping_patience")
        _more_than_zero(self, "learning_rate")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"--layer_decay {self.layer_decay}: must be more than 0, at most 1")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ConfigError(f"--ema {self.ema}: must be at least 0, less than 1")
        if self.max_steps <= 0:
            _more_than_zero(self, "num_train_epochs")
            if self.num_train_epochs > 1e6:
                raise ConfigError(f"--num_train_epochs {self.num_train_epochs:g}: must be at most 1,000,000")
        if self.max_steps < -1 or self.max_steps == 0:
            raise ConfigError(f"--max_steps {self.max_steps}: must be positive, or -1 for num_train_epochs")
        _at_least(self, -1, "max_steps")
        if self.max_steps > 0 and self.min_steps:
            raise ConfigError(f"--min_steps {self.min_steps}: --max_steps {self.max_steps} is the length; name one")
        self._check_saves()

    def _check_saves(self) -> None:
        saves, evaluations = self.save_steps, self.eval_steps
        counted = isinstance(saves, int) and isinstance(evaluations, int)
        if (saves % evaluations) if counted else saves != evaluations:
            raise ConfigError(
                f"--save_steps {self.save_steps}: must be a multiple of --eval_steps {self.eval_steps},"
                " so that every saved checkpoint has been evaluated"
            )


@dataclass
class Config:
    """All five sections. Only train/main.py and train/setup/ see them together."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig
    augment: AugmentConfig
    recipe: RecipeConfig
    preset_reason: str = ""  # why this preset: printed in the first line of a run, and recorded
    named: list[str] = field(default_factory=list)  # flags that were given, not taken from defaults or a preset
    continues: bool = False  # a run that has a record
    notes: list[str] = field(default_factory=list)  # on flags of the Trainer: printed at the start, and recorded

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """The opposite of `asdict`, for the other processes of a run."""
        sections = dict(zip(("run", "data", "model", "augment", "recipe"), SECTIONS, strict=True))
        return cls(**{name: sections[name](**v) if name in sections else v for name, v in document.items()})

    def flat(self) -> dict[str, Any]:
        """Every flag and its value, as one dictionary."""
        sections = (self.run, self.data, self.model, self.augment, self.recipe)
        return {name: value for section in sections for name, value in asdict(section).items()}


SECTIONS = (RunConfig, DataConfig, ModelConfig, AugmentConfig, RecipeConfig)
FLAGS = {item.name: item for section in SECTIONS for item in fields(section)}
# Flags whose value may name code, as package.module:Class: only the command line is trusted with that.
IMPORTS_CODE = ("optim", "lr_scheduler_type")
# Flags of one start of the program, not of the run: a resume neither inherits nor compares them.
OF_THE_START = (
    "output_dir",
    "resume_from_checkpoint",
    "stop_after",
    "debug",
    "eval_only",
    "cache_dir",
    "torch_profiler",
    "verbose",
    "seeds",
    "sweep",
    "folds",
)
# For what the record of a run lacks that an earlier version started: as that version did it.
DEFAULTS_OF_OLDER_RUNS = {"test_at_end": False}
# What ends a run early: a resume may change it, though another length is another recipe.
EARLY_ENDS = ("early_stopping_patience", "until", "max_time")
# Flags that change what is shown or kept, or the speed, but no bit of the weights.
FREE = {
    *OF_THE_START,
    "preset",
    "test_at_end",
    "dataloader_num_workers",
    "dataloader_timeout",
    "image_cache",
    "cache_memory",
    "cache_size",
    "tune_malloc",
    "async_save",
    "ddp_timeout",
    "logging_steps",
    "report_to",
    "save_total_limit",
}


def _at_least(section: Any, least: float, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if value not in (None, "epoch") and not least <= value < HUGE:
            limit = "below 2**62" if HUGE <= value < math.inf else f"a finite number of at least {least}"
            raise ConfigError(f"--{name} {str(value)[:40]}: must be {limit}")


def _more_than_zero(section: Any, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if not 0 < value < math.inf:
            raise ConfigError(f"--{name} {value}: must be finite and more than 0")
