import re
import time

import pytest
import yaml

from tests.running import run_here, run_process
from train.config.cli import parse
from train.config.presets import BEANS
from train.config.schema import FLAGS
from train.errors import ConfigError

CONTRACT = """
preset dataset model output_dir num_train_epochs max_steps per_device_train_batch_size
per_device_eval_batch_size gradient_accumulation_steps optim optim_args learning_rate weight_decay max_grad_norm
lr_scheduler_type lr_scheduler_kwargs warmup_steps eval_steps save_steps logging_steps save_total_limit
metric_for_best_model greater_is_better precision device seed dataloader_num_workers max_train_samples
max_eval_samples cache_dir stop_after resume_from_checkpoint debug
"""


def test_help_lists_every_flag_of_the_contract_without_waiting_for_torch():
    started = time.perf_counter()
    done = run_process("--help")
    assert done.returncode == 0 and time.perf_counter() - started < 1
    for name in CONTRACT.split():
        assert len(re.findall(rf"^  --{name}\b", done.stdout, flags=re.MULTILINE)) == 1, name  # once
    assert "beans: 0.0002" in " ".join(done.stdout.split())  # what a recipe sets stands beside the default


def test_every_flag_is_documented():
    assert all(flag.metadata["help"] for flag in FLAGS.values())


def test_defaults_are_the_trainers_and_the_recipe_overrides_them():
    bare = parse(["--preset", "trainer", "--dataset", "d", "--model", "m"]).recipe
    assert (bare.learning_rate, bare.num_train_epochs, bare.per_device_train_batch_size) == (5e-5, 3.0, 8)
    beans = parse(["--dataset", "d", "--model", "m"])
    assert beans.run.preset == "beans" and "named" in beans.preset_reason
    for name, value in BEANS.items():
        if name not in ("dataset", "model"):
            assert beans.flat()[name] == value


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    path = tmp_path / "my.yaml"
    # 1e-3 without a point is a string in YAML 1.1: it must still become a number
    path.write_text("preset: leaves\nlearning_rate: 1e-3\nweight_decay: 0.1\nlr_scheduler_kwargs: {num_cycles: 2}\n")
    config = parse([str(path), "--weight_decay", "0.2"])
    assert (config.recipe.learning_rate, config.recipe.weight_decay) == (1e-3, 0.2)
    assert config.recipe.lr_scheduler_kwargs == '{"num_cycles": 2}' and config.data.dataset == "builtin:leaves"


def test_a_json_file_and_dashes_instead_of_underscores_work(tmp_path):
    path = tmp_path / "my.json"
    path.write_text('{"preset": "debug", "seed": 7}')
    config = parse([str(path), "--learning-rate=0.5"])
    assert (config.run.seed, config.recipe.learning_rate) == (7, 0.5)


def test_every_value_survives_the_way_through_config_yaml(tmp_path):
    config = parse(["--preset", "debug", "--optim_args", "betas=(0.8,0.9)", "--greater_is_better", "true"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.flat()))
    assert parse([str(path)]).flat() == config.flat()


BAD = [
    (["--learning_rat", "1"], "--learning_rat: no such flag; did you mean --learning_rate?"),
    (["--learning_rate", "fast"], "--learning_rate"),
    (["--learning_rate", "-1"], "--learning_rate -1.0: must be finite and more than 0"),
    (["--learning_rate", "nan"], "--learning_rate nan"),
    (["--learning_rate", "inf"], "--learning_rate inf"),
    (["--num_train_epochs", "0"], "--num_train_epochs 0.0"),
    (["--max_steps", "0"], "--max_steps 0"),
    (["--max_steps", "-7"], "--max_steps -7"),
    (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size 0"),
    (["--per_device_eval_batch_size", "-1"], "--per_device_eval_batch_size -1"),
    (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps 0"),
    (["--logging_steps", "0"], "--logging_steps 0"),
    (["--eval_steps", "0"], "--eval_steps 0"),
    (["--eval_steps", "4", "--save_steps", "6"], "multiple of --eval_steps 4"),
    (["--save_total_limit", "0"], "--save_total_limit 0"),
    (["--warmup_steps", "-1"], "--warmup_steps -1.0"),
    (["--weight_decay", "-0.1"], "--weight_decay -0.1"),
    (["--max_grad_norm", "-1"], "--max_grad_norm -1.0"),
    (["--stop_after", "0"], "--stop_after 0"),
    (["--seed", "-1"], "--seed -1"),
    (["--seed", "1.5"], "--seed"),
    (["--max_train_samples", "0"], "--max_train_samples 0"),
    (["--dataloader_num_workers", "-1"], "--dataloader_num_workers -1"),
    (["--train_val_split", "1"], "--train_val_split 1.0"),
    (["--precision", "fp8"], "--precision"),
    (["--preset", "roses"], "--preset"),
    (["stray"], "stray"),
    (["--seed", "1", "stray"], "stray"),
    (["--preset", "trainer"], "--dataset: name one"),
    (["--eval_only", "--stop_after", "3"], "--eval_only"),
    (["--resume_from_checkpoint", "nowhere/checkpoint-3"], "nowhere/checkpoint-3"),
    (["--output_dir", "pyproject.toml"], "is a file"),
]


@pytest.mark.parametrize(("flags", "said"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_a_bad_command_line_is_one_line_that_names_the_flag(flags, said, capsys):
    preset = [] if "--preset" in flags or flags[0] == "stray" else ["--preset", "debug"]
    assert run_here(*preset, *flags) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert printed.out == ""  # nothing was started


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("learning_rat: 1\n", "did you mean --learning_rate"),
        ("- a\n- b\n", "must hold lines"),
        ("a: [1\n", "is not YAML"),
        ("learning_rate: fast\n", "learning_rate"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, capsys, content, said):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    assert run_here(path) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_debug_shows_the_traceback(capsys):
    with pytest.raises(ConfigError):
        run_here("--preset", "debug", "--learning_rate", "0", "--debug")


def test_a_real_process_exits_with_2_and_no_traceback():
    done = run_process("--preset", "debug", "--learning_rate", "0")
    assert done.returncode == 2 and re.fullmatch(r"error: --learning_rate 0\.0: .*\n", done.stderr)
