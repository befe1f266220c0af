"""Runs with the flags of the model: other families, another size, frozen parts, recomputed activations."""

import json
import shutil

import pytest
import torch
from transformers import pipeline

from models.family import FAMILIES
from models.loading import load_model
from tests.checkpoints import small_checkpoint
from tests.models.test_classifier import part_of
from tests.models.test_family import as_image, pictures
from tests.running import records, run_here, same_tensors, weights
from train.checkpoint.folder import list_checkpoints

SHORT = (
    *("--preset", "debug", "--max_train_samples", 16, "--max_eval_samples", 8, "--max_steps", 4),
    *("--eval_steps", 2, "--save_steps", 2, "--save_total_limit", 9),
)
SLOW = pytest.mark.slow  # several seconds together
LEAVES = ["angular_leaf_spot", "bean_rust", "healthy"]


def train(out, *flags) -> None:
    assert run_here(*SHORT, "--output_dir", out, *flags) == 0


def train_in_two_starts(out, *flags) -> None:
    train(out, *flags, "--stop_after", 2)
    assert run_here("--output_dir", out, "--resume_from_checkpoint", "auto") == 0


def assert_same_run(one, other) -> None:
    assert same_tensors(weights(one), weights(other)) and records(one) == records(other)
    for name in ("optimizer.safetensors", "model.safetensors"):
        assert (list_checkpoints(one)[0][1] / name).read_bytes() == (list_checkpoints(other)[0][1] / name).read_bytes()


def refusal(capsys, *flags) -> str:
    capsys.readouterr()
    assert run_here(*SHORT, *flags) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("family", [name if name == "dinov2" else pytest.param(name, marks=SLOW) for name in FAMILIES])
def test_every_family_is_trained_resumed_exported_and_evaluated(family, tmp_path, capsys):
    model = small_checkpoint(family, tmp_path / "model", LEAVES[:2])
    train(tmp_path / "one", "--model", model)
    assert "new head for 3 classes" in capsys.readouterr().out
    train_in_two_starts(tmp_path / "two", "--model", model)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    capsys.readouterr()
    data = ("--dataset", "builtin:leaves", "--max_eval_samples", 8)
    assert run_here("--preset", "debug", "--model", tmp_path / "one", *data, "--eval_only") == 0
    printed = capsys.readouterr().out
    found = json.loads(printed[printed.index("{\n") :])
    reported = json.loads((tmp_path / "one/eval_results.json").read_text())
    assert found["eval_loss"] == reported["eval_loss"] and found["eval_confusion"] == reported["eval_confusion"]
    classify = pipeline("image-classification", model=str(tmp_path / "one"))
    assert {item["label"] for item in classify(as_image(pictures()[1]), top_k=3)} == set(LEAVES)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_images_whose_middle_is_cut_out_are_kept_to_the_bit(kind, tmp_path):
    model = ("--model", small_checkpoint("dinov2", tmp_path / "model"))
    train(tmp_path / "decoded", *model)
    train(tmp_path / kind, *model, "--image_cache", kind, "--cache_dir", tmp_path / "cache")
    assert same_tensors(weights(tmp_path / "decoded"), weights(tmp_path / kind))


def test_another_size_is_interpolated_once_and_belongs_to_the_run(tmp_path, capsys):
    model = ("--model", small_checkpoint("dinov2", tmp_path / "model"), "--image_size", 48)
    train(tmp_path / "one", *model)
    once = "position embeddings interpolated from 32 to 48 pixels"
    printed = capsys.readouterr().out
    assert printed.count(once) == 1 and ", 48 pixels, " in printed
    train(tmp_path / "two", *model, "--stop_after", 2)
    assert once in capsys.readouterr().out
    again = ("--output_dir", tmp_path / "two", "--resume_from_checkpoint", "auto")
    assert "image_size was 48, is now 64" in refusal(capsys, *again, "--image_size", 64)
    assert run_here(*again) == 0
    printed = capsys.readouterr().out
    assert once not in printed and ", 48 pixels, " in printed
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert json.loads((tmp_path / "two/config.json").read_text())["image_size"] == 48


def test_a_built_in_model_of_another_size_is_trained(tmp_path):
    train(tmp_path / "run", "--image_size", 16)
    assert json.loads((tmp_path / "run/preprocessor_config.json").read_text())["size"] == {"height": 16, "width": 16}


@pytest.mark.parametrize(
    ("what", "said", "trained"),
    [
        ("backbone", "frozen: backbone; 0.", {"head"}),
        ("1", "frozen: embeddings and 1 of 2 blocks; ", {"block 1", "norm", "head"}),
    ],
)
@pytest.mark.parametrize("family", ["vit", pytest.param("dinov2", marks=SLOW)])
def test_frozen_weights_do_not_move_whatever_decays_and_a_resume_keeps_the_bits(
    family, what, said, trained, tmp_path, capsys
):
    flags = ("--model", small_checkpoint(family, tmp_path / "model", LEAVES), "--freeze", what, "--weight_decay", 0.1)
    train(tmp_path / "one", *flags)
    assert said in capsys.readouterr().out
    before = load_model(str(tmp_path / "model"), LEAVES).model.state_dict()
    after = load_model(str(list_checkpoints(tmp_path / "one")[0][1]), LEAVES).model.state_dict()
    moved = {part_of(name) for name in before if not torch.equal(before[name], after[name])}
    assert moved == trained and before.keys() == after.keys()
    train_in_two_starts(tmp_path / "two", *flags)
    assert said in capsys.readouterr().out
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_muon_needs_a_matrix_to_train(tmp_path, capsys):
    muon = ("--optim", "muon", "--output_dir", tmp_path / "run")
    message = "error: --optim muon: is for matrices inside the encoder, all of which --freeze keeps; try adamw"
    assert refusal(capsys, *muon, "--freeze", "backbone") == message
    assert refusal(capsys, *muon, "--freeze", 2) == message
    assert run_here(*SHORT, *muon, "--freeze", 1) == 0


def test_more_blocks_than_there_are_cannot_be_frozen(tmp_path, capsys):
    assert "--freeze 3: the model has 2 blocks" in refusal(capsys, "--freeze", 3, "--output_dir", tmp_path / "run")


def test_a_frozen_recipe_evaluates(tmp_path, capsys):
    train(tmp_path / "run", "--freeze", "backbone")
    flags = ("--preset", "debug", "--model", tmp_path / "run", "--dataset", "builtin:leaves", "--max_eval_samples", 8)
    assert run_here(*flags, "--freeze", "backbone", "--eval_only") == 2
    assert "--eval_only: trains nothing, so --freeze has no meaning beside it" in capsys.readouterr().err
    assert run_here(*flags, "--eval_only") == 0
    assert '"eval_loss"' in capsys.readouterr().out


@pytest.mark.parametrize("freeze", [(), ("--freeze", 1)])
def test_activations_computed_again_change_no_bit_of_a_run(freeze, tmp_path, capsys):
    rates = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    flags = ("--model", small_checkpoint("deit", tmp_path / "model", **rates), *freeze)
    train(tmp_path / "kept", *flags)
    assert "computed again" not in capsys.readouterr().out
    train(tmp_path / "again", *flags, "--gradient_checkpointing", "true")
    assert "activations computed again in the backward pass" in capsys.readouterr().out
    assert_same_run(tmp_path / "kept", tmp_path / "again")


# -- revisions of a model on the Hub -----------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path):
    """The Hub's cache with a repository of two commits: `main` and the tag `v1`, of other weights."""
    repository = tmp_path / "cache/models--someone--vit"
    for name, family, commit in (("main", "vit", "a" * 40), ("v1", "deit", "b" * 40)):
        small_checkpoint(family, repository / "snapshots" / commit, LEAVES)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    return ("--model", "someone/vit", "--cache_dir", tmp_path / "cache")


@pytest.mark.parametrize(("revision", "family"), [((), "vit"), (("--model_revision", "v1"), "deit")])
def test_the_revision_that_is_named_is_trained(revision, family, hub, tmp_path):
    train(tmp_path / "run", *hub, *revision, "--stop_after", 2)
    assert json.loads((tmp_path / "run/checkpoint-2/config.json").read_text())["model_type"] == family
    shutil.rmtree(tmp_path / "cache")  # the run needs it no more
    assert run_here("--output_dir", tmp_path / "run", "--resume_from_checkpoint", "auto") == 0
    card = (tmp_path / "run/README.md").read_text()
    assert ("`someone/vit` at `v1`" in card) == bool(revision)


def test_the_revision_that_is_named_is_evaluated(hub, capsys):
    flags = (*hub, "--dataset", "builtin:leaves", "--max_eval_samples", 8, "--preset", "debug", "--eval_only")
    losses = []
    for revision in ((), ("--model_revision", "v1"), ("--model_revision", "b" * 40)):
        assert run_here(*flags, *revision) == 0
        printed = capsys.readouterr().out
        losses.append(json.loads(printed[printed.index("{\n") :])["eval_loss"])
    assert losses[0] != losses[1] == losses[2]


@pytest.mark.parametrize("revision", ["v2", "c" * 40])
def test_a_revision_that_there_is_not_is_one_line(revision, hub, capsys, tmp_path):
    line = refusal(capsys, *hub, "--model_revision", revision, "--output_dir", tmp_path / "run")
    assert line.startswith(f"error: --model someone/vit: --model_revision {revision}: ") and "does not hold" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("revision", ["../../main", "/etc/passwd", "a..b"])
def test_a_revision_is_no_path(revision, hub, capsys, tmp_path):
    line = refusal(capsys, *hub, "--model_revision", revision, "--output_dir", tmp_path / "run")
    assert line == f"error: --model_revision {revision}: is not the name of a branch, tag or commit"


def test_a_revision_of_what_is_not_on_the_hub_is_refused(capsys, tmp_path):
    revision = ("--model_revision", "v1", "--output_dir", tmp_path / "run")
    folder = small_checkpoint("vit", tmp_path / "model")
    for model in ("builtin:tiny", folder):
        line = refusal(capsys, "--model", model, *revision)
        assert line == f"error: --model_revision v1: {model} is not on the Hub; leave it out"
