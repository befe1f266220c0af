"""The flags of the Hugging Face Trainer and of its script run_image_classification.py, in ours.

`TABLE` has every flag of theirs, of transformers 4 and 5, that is none of ours, or takes other words there. Those that
mean the same in both, such as --learning_rate, are not in it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from train.config.flags import no_such_flag
from train.config.given import FILE, TYPED, Flags, Given, split
from train.config.presets import BEANS_MODEL
from train.config.reporting import tracker_names
from train.config.schema import FLAGS
from train.config.trainer_parts import ADAM, put_together
from train.errors import ConfigError
from train.optimizers.names import optimizer_parameters

# What run_image_classification.py does without being told.
SCRIPT: dict[str, Any] = {"model": BEANS_MODEL, "augment": "flip", "random_resized_crop": 0.08}
# The flags by which its command line, or that of its sister without a Trainer, is known.
OF_THE_SCRIPT = ("do_train", "do_eval", "dataset_name", "model_name_or_path", "max_train_steps", "num_warmup_steps")


class Means(NamedTuple):
    """A flag of ours under another name, or with other words for its values; a word for None asks for nothing."""

    ours: str
    words: Mapping[str, str | None] = {}


class Part(NamedTuple):
    """A flag that says something only together with others, which a function below puts together."""

    words: Sequence[str] = ()  # that it takes; () is any


class NoEffect(NamedTuple):
    """A flag that changes nothing here, which is noted unless it asks for what happens anyway."""

    why: str
    unless: Sequence[str] = ()


class Refused(NamedTuple):
    """A flag for what is not here, refused unless it asks for what happens anyway."""

    instead: str
    unless: Sequence[str] = ("false",)


def _secret(flags: Flags, given: Given) -> None:
    if given.word not in SWITCH:  # a mere "use my login" is what the Hub's libraries do
        text = "a secret does not belong among flags, which others can read; set HF_TOKEN, or run hf auth login"
        flags.refuse(f"--{given.spelled}", text, given.source)


def _reports(flags: Flags, given: Given) -> None:
    asked = ",".join(re.findall(r"[^\s,'\"\[\]]+", given.value or ""))  # a list in a JSON file comes as Python shows it
    try:
        tracker_names(asked)
    except ConfigError as error:
        flag, _, text = str(error).partition(": ")
        flags.refuse(flag, text, given.source)
        return
    flags.put("report_to", given._replace(value=asked))


def _shards(flags: Flags, given: Given) -> None:
    words = set(re.findall(r"\w+", given.word))
    if words and words <= {"full_shard", "auto_wrap"}:
        given = given._replace(value="true")
    elif words and not words <= set(SWITCH):
        flags.refuse(str(given), "only full_shard auto_wrap is here: --fsdp true", given.source)
        return
    if words:
        flags.put("fsdp", given)


def _debugging(flags: Flags, given: Given) -> None:
    words = re.findall(r"\w+", given.word)
    if set(words) & {"underflow_overflow", "tpu_metrics_debug"}:
        flags.idle(str(given), "a NaN or an infinity always ends the run, and its images are named")
    elif words:
        flags.put("debug", given)


def _optimizer(flags: Flags, given: Given) -> None:
    if given.word in SAME_AS_ADAMW:
        given = given._replace(value="adamw")
    elif given.value and ":" not in given.value:
        try:
            optimizer_parameters(given.value)
        except ConfigError as error:
            flags.refuse(str(given), f"{str(error).partition(': ')[2]}, or package.module:Class", given.source)
            return
    flags.put("optim", given)


def _warmup(flags: Flags, given: Given) -> None:
    if not 0 <= (given.number or 0) < 1:
        flags.refuse(str(given), "is a share of all updates, below 1; --warmup_steps takes a number", given.source)
        return
    flags.put("warmup_steps", given)


SWITCH = ("true", "false")
EPOCH_OR_STEPS = ("no", "steps", "epoch")
SAME_AS_ADAMW = ("adamw_hf", "adamw_apex_fused", "adamw_torch_xla", "adamw_torch_npu_fused")
SEVERAL = ("report_to", "label_names", "include_for_metrics", "optim_target_modules")  # values, with spaces

UPLOAD = "training uploads nothing; leave it out, and run plainloop push OUTPUT_DIR NAME when it is done"
LOADER = "batches are prepared as --image_cache and --dataloader_num_workers say"
PLAIN_DDP = "DDP is set up for this model, over nccl on CUDA and gloo elsewhere"
OTHER_DEVICE = "the devices here are --device cpu, cuda and mps; leave it out"
SAVES = "every checkpoint is a model folder in safetensors, with what a resume needs"
METRICS = "loss, accuracy and the rates of each class are always computed, from counts"
TOKENS = "images are counted, and there are no tokens"
CONSOLE = "what is printed is the same everywhere; --verbose prints more"
FILES = "all logs lie in --output_dir"
COMPILER = "torch.compile uses inductor with its defaults here; say --torch_compile on"
BATCHES = "batch sizes are per process, and every image counts once; leave it out"

Row = Means | Part | NoEffect | Refused | Callable[[Flags, Given], None]
TABLE: dict[str, Row] = {
    # run_image_classification.py: data and model
    "dataset_name": Means("dataset"),
    "model_name_or_path": Means("model"),
    "model_type": NoEffect("the model's own config.json says what it is"),
    "config_name": Part(),
    "image_processor_name": Part(),
    "feature_extractor_name": Part(),
    "ignore_mismatched_sizes": NoEffect("a head that does not fit the classes is always replaced", ("true",)),
    "trust_remote_code": Refused("no code that comes with a model or data set is run; leave it out"),
    "token": _secret,
    "use_auth_token": _secret,
    "hub_token": _secret,
    "push_to_hub_token": _secret,
    # what to do
    "do_train": Part(SWITCH),
    "do_eval": Part(SWITCH),
    "do_predict": NoEffect("a test split is left alone", ("false",)),
    "overwrite_output_dir": NoEffect("nothing is written over: a used folder is refused", ("false",)),
    "resume_from_checkpoint": Means("resume_from_checkpoint", {"true": "auto", "false": None}),
    "ignore_data_skip": NoEffect("a resume always goes on with the next image", ("false",)),
    "restore_callback_states_from_checkpoint": NoEffect("there are no callbacks", ("false",)),
    # the names of earlier versions, and of run_image_classification_no_trainer.py
    "per_gpu_train_batch_size": Means("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": Means("per_device_eval_batch_size"),
    "max_train_steps": Means("max_steps"),
    "num_warmup_steps": Means("warmup_steps"),
    "checkpointing_steps": Means("save_steps"),
    "with_tracking": NoEffect("metrics.jsonl is always written, and --report_to says what else", ("true",)),
    "evaluation_strategy": Means("eval_strategy"),
    "evaluate_during_training": Means("eval_strategy", {"true": "steps", "false": "no"}),
    # how often
    "logging_strategy": Part(EPOCH_OR_STEPS),
    "eval_strategy": Part(EPOCH_OR_STEPS),
    "save_strategy": Part((*EPOCH_OR_STEPS, "best")),
    "eval_delay": NoEffect("evaluations begin with the first --eval_steps", ("false", "0.0")),
    "eval_on_start": NoEffect("evaluations begin with the first --eval_steps", ("false",)),
    "logging_first_step": NoEffect("logged every --logging_steps", ("false",)),
    "load_best_model_at_end": NoEffect("the folder always holds the best model", ("true",)),
    # optimizer and schedule
    "optim": _optimizer,
    "adafactor": Refused("say --optim adafactor, which is torch's"),
    **{name: Part() for name in ADAM},
    "optim_target_modules": Refused("GaLore and APOLLO are not here; leave it out", ()),
    "warmup_ratio": _warmup,
    "label_smoothing_factor": Means("label_smoothing"),
    "neftune_noise_alpha": Refused("noise on embeddings is not here; leave it out", ("none",)),
    # precision and device
    "fp16": Part(SWITCH),
    "bf16": Part(SWITCH),
    "use_cpu": Means("device", {"true": "cpu", "false": None}),
    "no_cuda": Means("device", {"true": "cpu", "false": None}),
    "use_mps_device": Means("device", {"true": "mps", "false": None}),
    **dict.fromkeys(
        ("fp16_full_eval", "bf16_full_eval"), NoEffect("evaluated under the autocast of training", ("false",))
    ),
    **dict.fromkeys(("fp16_backend", "half_precision_backend", "fp16_opt_level"), NoEffect("autocast is torch's")),
    **dict.fromkeys(("tpu_num_cores", "tpu_metrics_debug", "use_ipex", "xpu_backend"), Refused(OTHER_DEVICE)),
    "jit_mode_eval": NoEffect("evaluated as trained", ("false",)),
    "torch_compile": Means("torch_compile", {"true": "on", "false": "off"}),
    "torch_compile_backend": Refused(COMPILER, ()),
    "torch_compile_mode": Refused(COMPILER, ()),
    "torchdynamo": Refused(COMPILER, ()),
    "activation_checkpointing": Means("gradient_checkpointing"),
    "gradient_checkpointing_kwargs": NoEffect("whole blocks are computed again"),
    "activation_checkpointing_kwargs": NoEffect("whole blocks are computed again"),
    "use_liger_kernel": NoEffect("a ViT has none of its layers", ("false",)),
    "liger_kernel_config": NoEffect("a ViT has none of its layers"),
    "use_cache": NoEffect("a classifier generates nothing", ("false",)),
    "past_index": NoEffect("a classifier generates nothing", ("-1",)),
    "full_determinism": NoEffect("the order of images and a resume are exact anyway", ("false",)),
    "data_seed": NoEffect("--seed is that of the data, too"),
    "auto_find_batch_size": NoEffect("the batch size stays as it is given", ("false",)),
    "torch_empty_cache_steps": NoEffect("torch keeps its cache"),
    # data loading
    "remove_unused_columns": NoEffect("only images and their classes are read", ("true",)),
    "label_names": NoEffect("only images and their classes are read"),
    "group_by_length": NoEffect("images have no length", ("false",)),
    "length_column_name": NoEffect("images have no length", ("length",)),
    "train_sampling_strategy": Refused("say --sampler shuffled or balanced", ("random",)),
    "dataloader_pin_memory": NoEffect(LOADER, ("true",)),
    "dataloader_in_order": NoEffect(LOADER, ("true",)),
    "dataloader_persistent_workers": NoEffect(LOADER, ("false",)),
    "dataloader_prefetch_factor": NoEffect(LOADER),
    "dataloader_multiprocessing_context": NoEffect(LOADER),
    "accelerator_config": Refused(BATCHES, ()),
    "split_batches": Refused(BATCHES),
    "dispatch_batches": Refused(BATCHES),
    # evaluation
    **dict.fromkeys(
        ("prediction_loss_only", "batch_eval_metrics", "include_inputs_for_metrics", "eval_use_gather_object"),
        NoEffect(METRICS, ("false",)),
    ),
    "eval_do_concat_batches": NoEffect(METRICS, ("true",)),
    "eval_accumulation_steps": NoEffect(METRICS),
    "include_for_metrics": NoEffect(METRICS),
    "use_legacy_prediction_loop": NoEffect(METRICS, ("false",)),
    # logs
    "report_to": _reports,
    "logging_dir": NoEffect(FILES),
    "run_name": NoEffect(FILES),
    "project": NoEffect(FILES, ("huggingface",)),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), NoEffect(FILES)),
    "log_level": NoEffect(CONSOLE, ("passive",)),
    "log_level_replica": NoEffect(CONSOLE, ("warning",)),
    "log_on_each_node": NoEffect(CONSOLE, ("true",)),
    "disable_tqdm": NoEffect("a progress bar is shown on terminals only"),
    "logging_nan_inf_filter": NoEffect("a NaN or an infinity ends the run", ("true", "false")),
    "include_num_input_tokens_seen": NoEffect(TOKENS, ("false",)),
    "include_tokens_per_second": NoEffect(TOKENS, ("false",)),
    "average_tokens_across_devices": NoEffect(TOKENS, ("true", "false")),
    "skip_memory_metrics": NoEffect("memory is not measured", ("true",)),
    "debug": _debugging,
    # checkpoints
    "save_safetensors": NoEffect(SAVES, ("true",)),
    "save_only_model": NoEffect(SAVES, ("false",)),
    "save_on_each_node": NoEffect("the first process writes", ("false",)),
    "enable_jit_checkpoint": NoEffect("SIGTERM always saves", ("true", "false")),
    **dict.fromkeys(("push_to_hub", "hub_always_push"), Refused(UPLOAD)),
    **dict.fromkeys(("hub_model_id", "push_to_hub_model_id", "push_to_hub_organization"), Refused(UPLOAD, ())),
    **dict.fromkeys(("hub_private_repo", "hub_revision"), Refused(UPLOAD)),
    "hub_strategy": Refused(UPLOAD, ("every_save",)),
    # several processes
    "local_rank": NoEffect("torchrun says it in the environment", ("-1",)),
    "ddp_find_unused_parameters": NoEffect(PLAIN_DDP, ("false",)),
    "ddp_broadcast_buffers": NoEffect(PLAIN_DDP, ("true", "false")),  # there are none
    "ddp_static_graph": NoEffect(PLAIN_DDP, ("false",)),
    "ddp_bucket_cap_mb": NoEffect(PLAIN_DDP),
    "ddp_backend": NoEffect(PLAIN_DDP),
    "fsdp": _shards,
    **dict.fromkeys(
        ("fsdp_config", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"),
        NoEffect("--fsdp shards each block of the model", ("false",)),
    ),
    "deepspeed": Refused("is not here; --fsdp shards weights, gradients and optimizer", ()),
    "parallelism_config": Refused("is not here; --fsdp shards weights, gradients and optimizer", ()),
    "sharded_ddp": Refused("is not here; --fsdp shards weights, gradients and optimizer"),
    "mp_parameters": Refused("SageMaker's model parallelism is not here; leave it out", ("",)),
    "ray_scope": NoEffect("--sweep and --seeds try values", ("last",)),
}


def translate(typed: Sequence[str], from_file: Mapping[str, str], path: str | None) -> Flags:
    """All flags, in the names and words of ours; what cannot be taken is among the `problems()` of the result.

    Args:
        typed: the command line.
        from_file: the flags in the file that it begins with.
        path: of the file.
    """
    flags = Flags(path)
    for name, value in from_file.items():
        _read(flags, name, [value], FILE)
    for name, values in split(typed):
        _read(flags, name, values, TYPED)
    spelled = {given.spelled for given in flags.given.values()}
    flags.script = next((name for name in OF_THE_SCRIPT if name in spelled), None)
    put_together(flags)
    return flags


def script_defaults(named: set[str], notes: list[str]) -> dict[str, Any]:
    """What the script does without being told, as far as it is not given; adds a note of it."""
    if "eval_only" in named:
        return {}
    defaults = {name: value for name, value in SCRIPT.items() if name not in named}
    if defaults:
        said = " ".join(f"--{name} {value}" for name, value in defaults.items())
        notes.insert(0, f"as run_image_classification.py does without being told: {said}")
    return defaults


def _read(flags: Flags, name: str | None, values: list[str], source: int) -> None:
    """One flag and the words after it."""
    name = name and name.replace("-", "_")
    if name and name not in TABLE.keys() | FLAGS.keys():
        positive = name.removeprefix("no_")
        if positive == name or not _is_switch(positive) or (values and source == FILE):
            flags.refuse(f"--{name}", no_such_flag(name), source)
            return  # the words after it may be its value
        name, values = positive, ["false", *values]
    count = len(values) if name in SEVERAL else 1 if name else 0
    for stray in values[count:]:
        flags.refuse(stray, "belongs to no flag; flags begin with --", source)
    if name:
        _look_up(flags, name, Given(" ".join(values[:count]) if values else None, name, source))


def _is_switch(name: str) -> bool:
    """Whether --no_NAME is its opposite."""
    match TABLE.get(name):
        case None:
            return name in FLAGS and isinstance(FLAGS[name].default, bool)
        case Means(ours, words):
            return "false" in words or _is_switch(ours)
        case Part(words):
            return "false" in words
    return True


def _look_up(flags: Flags, name: str, given: Given) -> None:
    """Do what the table says."""
    match TABLE.get(name):
        case None:
            flags.put(name, given)
        case Means(ours, words):
            _rename(flags, name, given, ours, words)
        case Part(words):
            if words and given.word not in words and given.value not in words:  # the word no is also a "false"
                flags.refuse(str(given), f"must be one of {', '.join(words)}", given.source)
            else:
                flags.put(name, given)
        case NoEffect(why, unless):
            if given.word not in unless:
                flags.idle(f"--{given.spelled}", why)
        case Refused(instead, unless):
            if given.word not in unless:
                flags.refuse(f"--{given.spelled}", instead, given.source)
        case function:
            function(flags, given)


def _rename(flags: Flags, name: str, given: Given, ours: str, words: Mapping[str, str | None]) -> None:
    if words and given.word in words:
        if words[given.word] is None:
            return
        given = given._replace(value=words[given.word])
    elif words and name != ours:
        flags.refuse(str(given), f"must be one of {', '.join(words)}", given.source)
        return
    if ours in TABLE and name != ours:
        _look_up(flags, ours, given)
    else:
        flags.put(ours, given)
