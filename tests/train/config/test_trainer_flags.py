"""Command lines of the Trainer's script, as people type them, and what becomes of each."""

import dataclasses
import json
import shlex

import pytest

from tests.data.making_images import png
from tests.running import run_here, run_process
from train.commands import inspect
from train.config.cli import parse
from train.config.presets import BEANS_MODEL
from train.config.schema import FLAGS
from train.config.trainer_flags import TABLE, translate
from train.errors import ConfigError
from train.optimizers.names import check_optimizer

BEANS = """--dataset_name beans --output_dir ./beans_outputs/ --remove_unused_columns False --label_column_name labels
--do_train --do_eval --learning_rate 2e-5 --num_train_epochs 5 --per_device_train_batch_size 8
--per_device_eval_batch_size 8 --logging_strategy steps --logging_steps 10 --eval_strategy epoch --save_strategy epoch
--load_best_model_at_end True --save_total_limit 3 --seed 1337"""
SCRIPT = {"preset": "trainer", "model": BEANS_MODEL, "augment": "flip", "random_resized_crop": 0.08}
EPOCHS = {"eval_steps": "epoch", "save_steps": "epoch"}

# What is typed; what it means; words of the notes.
LINES = {
    "beans": (
        BEANS,
        SCRIPT
        | EPOCHS
        | {"dataset": "beans", "output_dir": "./beans_outputs/", "label_column_name": "labels", "learning_rate": 2e-5}
        | {"num_train_epochs": 5.0, "per_device_train_batch_size": 8, "logging_steps": 10, "save_total_limit": 3}
        | {"seed": 1337, "precision": "auto", "eval_only": False},
        ["--remove_unused_columns", "without being told"],
    ),
    "transformers 4": (
        BEANS.replace("eval_strategy", "evaluation_strategy"),
        SCRIPT | EPOCHS | {"dataset": "beans", "seed": 1337},
        [],
    ),
    "cats_vs_dogs": (
        "--dataset_name cats_vs_dogs --model_name_or_path facebook/deit-tiny-patch16-224 --model_revision main"
        " --ignore_mismatched_sizes --output_dir out --do_train --do_eval --fp16 --fp16_full_eval"
        " --warmup_ratio 0.1 --weight_decay 0.05 --lr_scheduler_type cosine --report_to none --train_val_split 0.1"
        " --max_train_samples 500 --max_eval_samples 100 --image_column_name image --dataloader_num_workers 4",
        {"preset": "trainer", "model": "facebook/deit-tiny-patch16-224", "model_revision": "main"}
        | {"precision": "fp16", "warmup_steps": 0.1, "weight_decay": 0.05, "lr_scheduler_type": "cosine"}
        | {"train_val_split": 0.1, "max_train_samples": 500, "max_eval_samples": 100, "image_column_name": "image"}
        | {"dataloader_num_workers": "4", "learning_rate": 5e-5, "report_to": "none"},
        ["--fp16_full_eval"],
    ),
    "evaluation alone": (
        "--model_name_or_path my-run --dataset_name d --do_eval --output_dir out --per_device_eval_batch_size 32",
        {"eval_only": True, "model": "my-run", "output_dir": None, "per_device_eval_batch_size": 32, "augment": "none"},
        ["--output_dir (--do_eval alone prints"],
    ),
    "several processes": (
        "--dataset_name d --do_train --do_eval --ddp_find_unused_parameters False --ddp_timeout 600 --local_rank -1"
        " --ddp_backend nccl --fsdp 'full_shard auto_wrap' --dataloader_drop_last True --gradient_checkpointing",
        {"fsdp": True, "ddp_timeout": 600, "dataloader_drop_last": True, "gradient_checkpointing": True},
        ["--ddp_backend"],
    ),
    "the script without a Trainer": (
        "--dataset_name d --model_name_or_path m --max_train_steps 100 --num_warmup_steps 10"
        " --checkpointing_steps epoch"
        " --with_tracking --report_to tensorboard --per_gpu_train_batch_size 4 --gradient_accumulation_steps 2",
        {"max_steps": 100, "warmup_steps": 10.0, "per_device_train_batch_size": 4} | EPOCHS,
        ["--eval_steps epoch"],
    ),
    "steps": (
        "--dataset_name d --do_train --do_eval --eval_strategy steps --logging_steps 30.0 --max_steps 1000",
        {"logging_steps": 30, "eval_steps": 30, "save_steps": 510},  # evaluated as often as logged, as there
        ["--save_steps 510"],
    ),
    "a share of the steps": (
        "--dataset_name d --do_train --max_steps 995 --eval_steps 0.1 --save_steps 0.2 --logging_steps 0.01",
        {"logging_steps": 10, "eval_steps": 100, "save_steps": 200},
        ["evaluation is a part of training"],
    ),
    "no strategy": (
        "--dataset_name d --do_train --eval_strategy no --save_strategy no --logging_strategy no",
        {"eval_steps": 500, "save_steps": 500, "logging_steps": 500},
        ["--eval_strategy no: evaluated all the same", "--save_strategy no: saved", "--logging_strategy no"],
    ),
    "the best only": (
        "--dataset_name d --do_train --do_eval --save_strategy best --eval_strategy epoch --eval_steps 50"
        " --metric_for_best_model accuracy --greater_is_better True",
        EPOCHS | {"metric_for_best_model": "accuracy", "greater_is_better": True},
        ["--save_strategy best", "--eval_steps (--eval_strategy epoch takes its place)"],
    ),
    "Adam": (
        "--dataset_name d --do_train --do_eval --optim adamw_hf --adam_beta1 0.9 --adam_beta2 0.98 --adam_epsilon 1e-6"
        " --optim_args amsgrad=true --label_smoothing_factor 0.1 --bf16 --fp16 False --tf32 True --torch_compile",
        {"optim": "adamw", "optim_args": "betas=(0.9, 0.98),eps=1e-06,amsgrad=True", "label_smoothing": 0.1}
        | {"precision": "bf16", "tf32": True, "torch_compile": "on"},
        [],
    ),
    "SGD": (
        "--dataset_name d --do_train --do_eval --optim sgd --adam_beta2 0.9 --fp16 False --no_cuda --torch_compile no",
        {"optim": "sgd", "optim_args": None, "precision": "fp32", "device": "cpu", "torch_compile": "off"},
        ["--adam_beta2 (--optim sgd has no betas)"],
    ),
    "switches": (
        "--dataset-name d --do-train True --do_eval=yes --no_remove_unused_columns --no_save_safetensors"
        " --use_auth_token --trust_remote_code False --push_to_hub=false --overwrite_output_dir --no_async_save"
        " --debug underflow_overflow --resume_from_checkpoint False --data_seed 7 --neftune_noise_alpha None",
        {"dataset": "d", "debug": False, "resume_from_checkpoint": None, "async_save": False},
        [
            "--remove_unused_columns",
            "--save_safetensors",
            "--overwrite_output_dir (nothing is written over",
            "data_seed",
        ],
    ),
    "a preset of ours": (
        "--preset debug --dataset_name builtin:leaves --do_train --do_eval --disable_tqdm True --logging_dir logs",
        {"preset": "debug", "model": "builtin:tiny", "augment": "none", "learning_rate": 1e-3, "eval_steps": 6},
        ["--disable_tqdm", "--logging_dir"],
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_the_script_is_taken_as_it_is(name):
    line, meant, notes = LINES[name]
    config = parse(shlex.split(line))
    flat = config.flat()
    assert {flag: flat[flag] for flag in meant} == meant
    text = "\n".join(config.notes)
    assert all(note in text for note in notes), text
    assert set(config.named) <= FLAGS.keys()


# What is typed; what the one line of the answer has in it.
REFUSED = {
    "beans, uploaded": (
        BEANS + " --push_to_hub --push_to_hub_model_id vit-base-beans",
        ["--push_to_hub, --push_to_hub_model_id: training uploads nothing", "plainloop push OUTPUT_DIR NAME"],
    ),
    "everything at once": (
        "--dataset_name d --do_train --deepspeed ds.json --report_to tensorboard comet_ml --trust_remote_code"
        " --learning_rat 1 --learning_rate fast --seed 1.5 --optim adamw_bnb_8bit --eval_steps 0.1"
        " --fsdp 'full_shard offload' stray",
        [
            *(
                "--deepspeed: ",
                "--report_to comet_ml: the trackers are tensorboard, wandb, mlflow",
                "--trust_remote_code: ",
                "--learning_rate: invalid",
            ),
            *("--learning_rat: no such flag; did you mean", "--seed: invalid", "--optim adamw_bnb_8bit: "),
            *("--eval_steps 0.1: is a share", "--fsdp full_shard offload: only", "stray: belongs to no flag"),
        ],
    ),
    "a used folder, too": (
        "--dataset_name d --do_train --push_to_hub --output_dir docs",
        ["--push_to_hub", "docs: is not"],
    ),
    "two of one": ("--dataset_name beans --dataset leaves --do_train", ["--dataset_name and --dataset: ask for beans"]),
    "two precisions": ("--fp16 --bf16 --dataset d", ["--fp16 and --bf16"]),
    "two more": ("--fp16 --precision bf16 --dataset d", ["--precision and --fp16: ask for bf16 and fp16"]),
    "two warm-ups": ("--warmup_ratio 0.1 --warmup_steps 5 --dataset d", ["--warmup_ratio and --warmup_steps"]),
    "all of it warm-up": ("--warmup_ratio 1.0 --dataset d", ["--warmup_ratio 1.0: is a share"]),
    "nothing to do": ("--dataset_name d --do_train False", ["--do_train False: leaves nothing to do"]),
    "neither yes nor no": ("--dataset_name d --do_train perhaps", ["--do_train perhaps: must be one of true, false"]),
    "no such strategy": ("--dataset_name d --eval_strategy often", ["--eval_strategy often: must be one of no, steps"]),
    "saved between": (
        "--dataset_name d --do_train --eval_strategy epoch --save_steps 500",
        ["--save_steps 500 and --eval_strategy epoch: a checkpoint is evaluated"],
    ),
    "betas twice": (
        "--dataset_name d --adam_beta2 0.9 --optim_args betas=(0.9,0.9)",
        ["--adam_beta2 and --optim_args"],
    ),
    "a configuration": ("--dataset_name d --do_train --config_name other", ["--config_name: a model is read with"]),
    "no folder": ("--train_dir nowhere --do_train", ["--train_dir nowhere: there is no such folder"]),
    "an address": ("--train_dir s3://b/train --validation_dir s3://b/val --do_train", ["--validation_dir s3://b/val"]),
    "compilers": ("--dataset d --torch_compile_mode max-autotune", ["--torch_compile_mode: torch.compile uses"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_all_that_must_change_is_said_at_once(name, capsys):
    line, said = REFUSED[name]
    assert run_here(*shlex.split(line)) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert all(text in printed.err for text in said), printed.err


@pytest.mark.parametrize("flag", ["token", "use_auth_token", "hub_token", "push_to_hub_token", "tokn"])
def test_a_secret_is_never_repeated(flag, capsys):
    for typed in ([f"--{flag}", "hf_abcdef"], [f"--{flag}=hf_abcdef"]):
        assert run_here("--dataset_name", "d", "--do_train", *typed) == 2
        error = capsys.readouterr().err
        assert f"--{flag}: " in error and "hf_abc" not in error
        assert ("HF_TOKEN" in error) == (flag != "tokn")


def test_every_argument_of_the_installed_trainer_is_known_and_its_defaults_are_taken():
    from transformers import TrainingArguments
    from transformers.training_args import OptimizerNames

    arguments = dataclasses.fields(TrainingArguments)
    assert len(arguments) > 100 and {item.name for item in arguments} <= FLAGS.keys() | TABLE.keys()
    typed = ["--dataset_name", "d", "--do_train"]
    for item in arguments:
        if item.default not in (None, dataclasses.MISSING, "") and item.name not in ("do_train", "do_eval"):
            typed.append(f"--{item.name}={getattr(item.default, 'value', item.default)}")
    recipe = parse(typed).recipe
    assert recipe == dataclasses.replace(parse(["--dataset_name", "d", "--do_train"]).recipe, optim=recipe.optim)
    for name in OptimizerNames:
        flags = translate(["--optim", name.value], {}, None)
        assert flags.problems() or check_optimizer(flags.given["optim"].value, None, 0) == {}


def test_the_names_of_transformers_4_are_known():
    names = """evaluation_strategy per_gpu_train_batch_size per_gpu_eval_batch_size no_cuda fp16_backend fp16_opt_level
    half_precision_backend overwrite_output_dir logging_dir save_safetensors warmup_ratio group_by_length use_mps_device
    push_to_hub_model_id push_to_hub_organization push_to_hub_token sharded_ddp fsdp_min_num_params jit_mode_eval
    fsdp_transformer_layer_cls_to_wrap tpu_num_cores tpu_metrics_debug past_index include_inputs_for_metrics ray_scope
    torchdynamo xpu_backend mp_parameters dispatch_batches split_batches include_tokens_per_second adafactor
    use_ipex use_legacy_prediction_loop evaluate_during_training feature_extractor_name use_auth_token"""
    assert set(names.split()) <= TABLE.keys()


def test_help_lists_none_of_them():
    text = run_process("--help").stdout
    assert "Hugging Face Trainer are understood" in " ".join(text.split())
    assert not [name for name in TABLE.keys() - FLAGS.keys() if f"--{name}" in text.split()]


def test_a_file_in_the_trainers_spelling_is_overridden_by_the_line(tmp_path):
    path = tmp_path / "script.json"
    flags = {"dataset_name": "beans", "do_train": True, "do_eval": True, "eval_strategy": "epoch", "fp16": True}
    path.write_text(
        json.dumps(flags | {"warmup-ratio": 0.1, "report_to": ["tensorboard", "mlflow"], "hub_model_id": None})
    )
    config = parse([str(path)])
    assert config.flat().items() >= (EPOCHS | {"dataset": "beans", "precision": "fp16", "warmup_steps": 0.1}).items()
    line = ["--dataset", "other", "--eval_steps", "50", "--precision", "bf16", "--warmup_steps", "7"]
    flat = parse([str(path), *line]).flat()
    assert flat.items() >= {"dataset": "other", "eval_steps": 50, "precision": "bf16", "warmup_steps": 7.0}.items()
    path.write_text(json.dumps(flags | {"push_to_hub": True, "learning_rat": 1}))
    with pytest.raises(ConfigError) as refused:
        parse([str(path), "--deepspeed", "x"])
    for said in (f"{path}: --push_to_hub: ", f"{path}: --learning_rat: no such flag", "; --deepspeed: "):
        assert said in str(refused.value)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The working folder, with photos/mine/CLASS and photos/checked/CLASS."""
    for number in range(24):
        folder = tmp_path / "photos" / ("mine" if number < 16 else "checked") / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(png(number))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def test_folders_of_their_own_become_folders_of_one_data_set(photos, monkeypatch):
    def found(*line):
        data = parse([*line, "--do_train", "--do_eval"]).data
        return data.dataset, data.train_dir, data.validation_dir

    assert found("--train_dir", "photos/mine/", "--validation_dir", "photos/checked") == ("photos", "mine", "checked")
    assert found("--train_dir", str(photos / "mine")) == (str(photos / "mine"), ".", None)
    assert found("--train_dir", "mine", "--dataset", "photos") == ("photos", "mine", None)  # as ever
    monkeypatch.chdir(photos)
    assert found("--train_dir", "mine", "--validation_dir", "./checked") == (str(photos), "mine", "checked")


def test_a_run_from_folders_with_the_scripts_flags(photos, capsys):
    line = """--train_dir photos/mine --validation_dir photos/checked --model_name_or_path builtin:tiny
    --output_dir out/ --do_train --do_eval --max_steps 4 --eval_strategy steps --eval_steps 2
    --save_strategy steps --save_steps 2 --load_best_model_at_end --metric_for_best_model accuracy --use_cpu
    --remove_unused_columns False --run_name mine"""
    assert run_here(*line.split()) == 0
    printed = capsys.readouterr().out
    assert "preset trainer: the Trainer's defaults, as --do_train is a flag of its script" in printed
    assert printed.count("flags without effect here: --remove_unused_columns (") == 1
    record = json.loads((photos.parent / "out/run.json").read_text())
    assert any("--run_name" in note for note in record["flag_notes"])
    assert (record["config"]["dataset"], record["train_images"], record["validation_images"]) == ("photos", 16, 8)
    assert (photos.parent / "out/checkpoint-2").is_dir() and (photos.parent / "out/checkpoint-4").is_dir()
    assert run_here(*line.split()) == 2  # not written over, not removed
    assert "holds another run" in capsys.readouterr().err
    assert run_here(*line.split(), "--resume_from_checkpoint", "True") == 0
    assert "preset trainer: as recorded in out" in capsys.readouterr().out
    evaluation = (
        "--train_dir photos/mine --validation_dir photos/checked --model_name_or_path out --do_eval --output_dir o"
    )
    assert run_here(*evaluation.split(), "--use_cpu") == 0
    assert '"eval_accuracy"' in capsys.readouterr().out and not (photos.parent / "o").exists()


def test_a_run_on_leaves_in_the_trainers_spelling_is_the_run_in_ours(tmp_path):
    ours = "--preset debug --max_steps 6 --warmup_steps 0.5 --optim_args betas=(0.9,0.98) --logging_steps 3 --seed 7"
    theirs = """--preset debug --dataset_name builtin:leaves --do_train --do_eval --max_steps 6 --warmup_ratio 0.5
    --adam_beta2 0.98 --optim adamw_torch --logging_steps 0.5 --seed 7 --report_to none --save_safetensors"""
    assert run_here(*ours.split(), "--output_dir", tmp_path / "ours") == 0
    assert run_here(*theirs.split(), "--output_dir", tmp_path / "theirs") == 0
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("ours", "theirs"))
    assert one == other


def test_inspect_takes_the_flags_of_the_data_and_refuses_the_others(photos):
    config = inspect.parse(
        ["--train_dir", "photos/mine", "--validation_dir", "photos/checked", "--label_column_name=x"]
    )
    assert (config.data.dataset, config.data.train_dir, config.data.label_column_name) == ("photos", "mine", "x")
    (photos / "script.yaml").write_text("dataset_name: photos\ndo_eval: true\nfp16: true\noutput_dir: out\n")
    config = inspect.parse(["photos/script.yaml", "--remove_unused_columns", "False"])
    assert (config.data.dataset, config.run.output_dir, config.run.precision) == ("photos", None, "auto")
    assert any("--remove_unused_columns" in note for note in config.notes)
    with pytest.raises(ConfigError) as refused:
        inspect.parse(["--dataset_name", "photos", "--warmup_ratio", "0.1", "--seed", "x"])
    assert "--warmup_ratio: no such flag" in str(refused.value) and "--seed: invalid" in str(refused.value)
