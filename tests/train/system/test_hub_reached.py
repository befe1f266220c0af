"""Runs with the Hub in reach: real processes and clients, and a stand-in for its server."""

import shutil

import pytest

from data.reading.leaves import table
from models.classifier import Classifier
from models.loading import load_model
from tests.hub import standing_in
from tests.running import records, run_process
from train.config.presets import BEANS_DATASET, BEANS_MODEL

SHORT = ("--max_steps", 3, "--eval_steps", 3, "--device", "cpu", "--precision", "fp32", "--report_to", "none")


@pytest.fixture
def hub(tmp_path):
    """The stand-in with a small ViT and some drawn leaves under the names of the recipe."""
    model, data = tmp_path / "model", tmp_path / "set" / "data"
    model.mkdir()
    data.mkdir(parents=True)
    loaded = load_model("builtin:tiny", ["LABEL_0", "LABEL_1"])
    Classifier(loaded.model.vit, loaded.model.processor).save_pretrained(model)
    for split, part in (("train", 0), ("train", 1), ("validation", 0)):
        count = 1 if split == "validation" else 2
        table(split, 42 + part, 12).to_parquet(data / f"{split}-{part:05}-of-{count:05}.parquet")
    (data.parent / "README.md").write_text("---\nlicense: mit\n---\n\nLeaves.\n")  # as the real one has it
    with standing_in() as server:
        server.add("models", BEANS_MODEL, model)
        server.add("datasets", BEANS_DATASET, data.parent)
        yield server


@pytest.fixture
def start(hub, tmp_path):
    """`python -m train.main` with the stand-in for the Hub, and caches of its own."""

    def run(*flags, **env):
        home = tmp_path / "home"
        reached = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        # Named too, because an earlier test's --cache_dir may have moved them for this process.
        reached |= {"HF_HUB_CACHE": str(home / "hub"), "HF_DATASETS_CACHE": str(home / "datasets")}
        return run_process(*flags, *SHORT, env=reached | {"HF_HUB_DISABLE_XET": "1"} | env)

    return run


@pytest.mark.slow
def test_the_recipe_of_beans_trains_from_the_hub_and_then_from_its_cache(hub, start, tmp_path):
    done = start("--output_dir", tmp_path / "first")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("preset beans: the Hub can be reached\n")
    assert f"data: {BEANS_DATASET}: 24 training and 12 validation images, 3 classes" in done.stdout
    assert f"model: {BEANS_MODEL}; new head for 3 classes" in done.stdout
    downloads = [line for line in hub.asked if line.startswith("GET ") and "/resolve/" in line]
    assert len([line for line in downloads if line.endswith(".parquet")]) == 3
    assert len([line for line in downloads if line.endswith("model.safetensors")]) == 1
    assert [line for line in hub.asked if "cursor=2" in line]  # listings come in pages
    card = (tmp_path / "first" / "README.md").read_text()
    assert f"base_model: {BEANS_MODEL}" in card and f"- {BEANS_DATASET}" in card

    hub.asked.clear()
    done = start("--output_dir", tmp_path / "second", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("preset beans: its dataset and model are in the Hub's local cache\n")
    assert not hub.asked and records(tmp_path / "second") == records(tmp_path / "first")

    shutil.rmtree(tmp_path / "home")
    done = start("--output_dir", tmp_path / "third", "--preset", "beans", HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not hub.asked


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("datasets", BEANS_DATASET), ("models", BEANS_MODEL)])
def test_what_the_hub_refuses_or_does_not_have_is_one_line(kind, name, hub, start, tmp_path):
    hub.repos[kind, name].gated = True
    done = start("--output_dir", tmp_path / "run")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert name in done.stderr and "gated" in done.stderr.lower()
    del hub.repos[kind, name]
    done = start("--output_dir", tmp_path / "run")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert name in done.stderr and not (tmp_path / "run").exists()
