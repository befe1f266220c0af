import shutil
import socket
import time

import pytest

from data.reading.leaves import table
from models.classifier import Classifier
from models.loading import load_model
from tests.running import run_here, run_process
from train.config.presets import BEANS_DATASET, BEANS_MODEL, choose_preset
from train.system import hub

REVISION = "0123456789abcdef0123456789abcdef01234567"


def put_in_cache(cache, kind, name):
    """An empty snapshot of a repository in the layout of the Hub's local cache."""
    folder = cache / f"{kind}s--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)
    return snapshot


@pytest.fixture
def cache(tmp_path):
    """The Hub's cache with a small ViT and a few drawn leaves under the names of the recipe."""
    cache = tmp_path / "cache"
    loaded = load_model("builtin:tiny", ["LABEL_0", "LABEL_1"])
    Classifier(loaded.model.vit, loaded.model.processor).save_pretrained(put_in_cache(cache, "model", BEANS_MODEL))
    data = put_in_cache(cache, "dataset", BEANS_DATASET) / "data"
    data.mkdir()
    for split in ("train", "validation"):
        table(split, 42, 12).to_parquet(data / f"{split}-00000-of-00001.parquet")
    return cache


def test_a_name_on_the_hub_is_told_from_a_folder_and_a_built_in(tmp_path):
    assert hub.is_hub_name("google/vit-base-patch16-224-in21k") and hub.is_hub_name("beans")
    assert not hub.is_hub_name(str(tmp_path)) and not hub.is_hub_name("builtin:leaves") and not hub.is_hub_name(None)
    assert not hub.is_hub_name("../shared/deit-tiny")


def test_auto_takes_beans_from_the_local_cache_and_trains(cache, tmp_path, capsys):
    out = tmp_path / "run"
    assert choose_preset("auto", set(), str(cache)) == ("beans", "its dataset and model are in the Hub's local cache")
    assert run_here("--cache_dir", cache, "--max_steps", 1, "--output_dir", out) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("preset beans: its dataset and model are in the Hub's local cache")
    assert f"{BEANS_DATASET}: 12 training and 12 validation images" in printed and "new head for 3 classes" in printed
    assert (out / "model.safetensors").is_file()


def test_auto_without_hub_or_cache_takes_leaves_and_says_why(tmp_path):
    preset, reason = choose_preset("auto", set(), str(tmp_path))
    assert preset == "leaves" and "HF_HUB_OFFLINE is set" in reason and "stand in for beans" in reason


def test_a_named_preset_is_never_replaced(tmp_path, capsys):
    assert choose_preset("beans", set(), str(tmp_path)) == ("beans", "as asked")
    started = time.perf_counter()
    assert run_here("--preset", "beans", "--cache_dir", tmp_path / "empty", "--output_dir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert time.perf_counter() - started < 10 and error.count("\n") == 1
    assert BEANS_DATASET in error and "--preset leaves" in error
    assert not (tmp_path / "run").exists()  # nothing half-made


def test_a_named_model_that_cannot_be_had_is_an_error_not_another_model(tmp_path, capsys):
    assert run_here("--preset", "debug", "--model", "nobody/nothing", "--output_dir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "--model nobody/nothing" in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.fixture
def silent_hub():
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_hub_costs_three_seconds_at_most(silent_hub):
    code = "import time; t = time.perf_counter(); from train.system import hub; print(hub.why_unreachable())"
    code += "; print(time.perf_counter() - t)"
    import subprocess
    import sys

    from tests.running import ROOT

    env = {"HF_ENDPOINT": silent_hub, "HF_HUB_OFFLINE": "0", "PATH": "", "HOME": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    reason, seconds = done.stdout.splitlines()
    assert silent_hub in reason and float(seconds) < 5  # imports included


@pytest.mark.slow
def test_downloads_and_tables_go_where_cache_dir_says(cache, tmp_path):
    home = tmp_path / "home"
    done = run_process(
        *("--cache_dir", cache, "--max_steps", 1, "--output_dir", tmp_path / "run"),
        env={"HOME": str(home), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert not home.exists() or not any(path.is_file() for path in home.rglob("*"))
    assert (cache / "datasets").is_dir()
    shutil.rmtree(cache)
