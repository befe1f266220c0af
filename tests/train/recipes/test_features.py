"""A frozen backbone: the head learns on features that are computed once, and folds of them estimate how good it is."""

import json

import pytest
import torch
import torch.nn.functional as F

from data.reading.leaves import LABEL_NAMES
from models.loading import load_model
from tests.running import records, run_here, same_tensors, weights
from train.config.schema import AugmentConfig, Config, DataConfig, ModelConfig, RecipeConfig, RunConfig
from train.errors import ConfigError
from train.loss import cross_entropy_sum
from train.precision import Precision
from train.setup.folds import assign_folds, out_of_fold, summary

CPU = torch.device("cpu")
FROZEN = ("--preset", "debug", "--freeze", "backbone", "--max_train_samples", 30, "--max_eval_samples", 12)


def test_features_give_the_head_the_updates_that_images_give_it(tmp_path, capsys):
    """In float64, where the batch that an image is computed in changes its features in the last bits only."""
    exact = (*FROZEN, "--precision", "fp64", "--logging_steps", 1, "--output_dir")
    assert run_here(*exact, tmp_path / "features") == 0
    assert "features: 42 images, computed once" in capsys.readouterr().out
    # Erasing no image at all changes nothing, but the features cannot be known to be the same.
    assert run_here(*exact, tmp_path / "images", "--random_erasing", 1e-12) == 0
    assert "features:" not in capsys.readouterr().out
    for one, other in zip(*(records(tmp_path / name) for name in ("features", "images")), strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_the_backbone_does_not_move_and_the_model_is_whole(tmp_path):
    torch.manual_seed(0)
    start = load_model("builtin:tiny", list(LABEL_NAMES)).model
    (tmp_path / "start").mkdir()
    start.save_pretrained(tmp_path / "start")
    assert run_here(*FROZEN, "--model", tmp_path / "start", "--output_dir", tmp_path / "run") == 0
    before, after = weights(tmp_path / "start"), weights(tmp_path / "run")
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
    said = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert said["eval_loss"] == min(line["eval_loss"] for line in records(tmp_path / "run") if "eval_loss" in line)


def test_a_run_on_features_resumes_to_the_same_bits(tmp_path):
    flags = (*FROZEN, "--ema", 0.9, "--output_dir")
    assert run_here(*flags, tmp_path / "whole") == 0
    assert run_here(*flags, tmp_path / "broken", "--stop_after", 5) == 0
    assert run_here(*flags, tmp_path / "broken", "--resume_from_checkpoint", "auto") == 0
    assert same_tensors(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    assert records(tmp_path / "whole") == records(tmp_path / "broken")


@pytest.mark.slow
def test_features_are_shared_by_runs_on_the_same_data(tmp_path, capsys):
    cached = (*FROZEN, "--image_cache", "auto", "--cache_dir", tmp_path / "cache", "--output_dir")

    def computed(name, *flags):
        assert run_here(*cached, tmp_path / name, *flags) == 0
        said = capsys.readouterr().out
        assert ("computed once in" in said) != ("as an earlier run computed them" in said)
        return "computed once in" in said

    assert computed("first") and not computed("second") and not computed("rate", "--learning_rate", 0.01)
    assert same_tensors(weights(tmp_path / "first"), weights(tmp_path / "second"))
    assert records(tmp_path / "first") == records(tmp_path / "second")
    assert computed("other-data", "--split_seed", 5) and computed("other-model", "--model", "builtin:small")
    assert computed("other-precision", "--precision", "bf16") and computed("nowhere", "--image_cache", "none")
    files = sorted(tmp_path.glob("cache/**/features-*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    assert len(files) == 4
    files[0].write_bytes(files[0].read_bytes()[:-1])  # damaged
    assert computed("again") and same_tensors(weights(tmp_path / "first"), weights(tmp_path / "again"))


def test_a_cache_that_cannot_be_written_is_said(tmp_path, capsys):
    cached = (*FROZEN, "--image_cache", "auto", "--cache_dir", tmp_path / "cache", "--output_dir")
    assert run_here(*cached, tmp_path / "first") == 0
    (file,) = tmp_path.glob("cache/**/features-*.safetensors")
    file.unlink()
    file.with_suffix(".tmp").mkdir()  # as root, permissions stop nobody
    assert run_here(*cached, tmp_path / "second") == 0
    assert "features are not kept for the next run" in capsys.readouterr().out
    assert same_tensors(weights(tmp_path / "first"), weights(tmp_path / "second"))


def test_folds_hold_every_class_and_keep_copies_together():
    labels = [0] * 50 + [1] * 10 + [2] * 7
    contents = [bytes([index]) for index in range(67)]
    contents[3] = contents[2] = contents[1]
    fold = assign_folds(labels, contents, 5, seed=1)
    assert fold[1] == fold[2] == fold[3] and fold.equal(assign_folds(labels, contents, 5, seed=1))
    assert not fold.equal(assign_folds(labels, contents, 5, seed=2))
    for label, count in ((0, 50), (1, 10), (2, 7)):
        sizes = torch.bincount(fold[torch.tensor(labels) == label], minlength=5)
        assert sizes.sum() == count and sizes.max() - sizes.min() <= (3 if label == 0 else 1)
    lonely = assign_folds([0, 1, 2, 3], [b""] * 4, 4, seed=1)
    assert sorted(lonely.tolist()) == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="--folds 5: there are 4 different training images"):
        assign_folds([0, 1, 2, 3], [b""] * 4, 5, seed=1)


def plain_probabilities(features, targets, fold, recipe, seed):
    """Out-of-fold probabilities by plain lines: full batches, so that the order of the images does not matter."""
    found = torch.empty(len(targets), 3)
    for number in range(int(fold.max()) + 1):
        rows = fold != number
        torch.manual_seed(seed)
        head = torch.nn.Linear(features.shape[1], 3)
        torch.manual_seed(seed)
        torch.nn.init.normal_(head.weight, std=0.02)
        torch.nn.init.zeros_(head.bias)
        optimizer = torch.optim.SGD(head.parameters(), lr=recipe.learning_rate)
        for _ in range(recipe.max_steps):
            optimizer.zero_grad()
            F.cross_entropy(head(features[rows]), targets[rows]).backward()
            optimizer.step()
        found[~rows] = head(features[~rows]).softmax(-1).detach()
    return found


def test_out_of_fold_is_what_plain_lines_find():
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(60) % 3
    features = torch.randn(60, 8, generator=generator) + 2 * F.one_hot(targets, 8)
    recipe = RecipeConfig(max_steps=30, per_device_train_batch_size=60, learning_rate=0.5, optim="sgd")
    recipe.max_grad_norm, recipe.lr_scheduler_type = 0.0, "constant"
    config = Config(RunConfig(seed=3), DataConfig(), ModelConfig(), AugmentConfig(), recipe)
    fold = assign_folds(targets.tolist(), [b""] * 60, 4, seed=3)
    head, labels = torch.nn.Linear(8, 3), targets.tolist()
    found = out_of_fold(head, features, labels, fold, config, Precision("fp32", CPU), cross_entropy_sum)
    assert torch.allclose(found, plain_probabilities(features, targets, fold, recipe, 3), atol=1e-5)
    told = summary(found, labels, ["a", "b", "c"], 4)
    assert told["accuracy"] == int((found.argmax(-1) == targets).sum()) / 60 > 0.5
    assert told["accuracy_wilson_95"][0] < told["accuracy"] < told["accuracy_wilson_95"][1]
    assert told["balanced_accuracy"] == pytest.approx(told["accuracy"])  # twenty images in each class


def test_an_estimate_by_folds_is_printed_and_recorded(tmp_path, capsys):
    assert run_here(*FROZEN, "--folds", 3, "--max_steps", 2, "--output_dir", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "of 30 training images, each judged by a head that was trained on the other 2 of 3 folds" in printed
    told = json.loads((tmp_path / "run" / "run.json").read_text())["folds"]
    assert told["folds"] == 3 and told["images"] == 30 and set(told["recall"]) == set(LABEL_NAMES)
    assert f"folds: accuracy {told['accuracy']:.4f}" in printed


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ((), "the backbone is not frozen"),
        (("--freeze", 1), "the backbone is not frozen"),
        (("--freeze", "backbone", "--augment", "flip"), "augmentation changes the images"),
        (("--freeze", "backbone", "--mixup", 0.2), "MixUp and CutMix change the images"),
    ],
)
def test_folds_without_features_are_refused(flags, why, tmp_path, capsys):
    assert run_here("--preset", "debug", "--folds", 3, *flags, "--output_dir", tmp_path / "run") == 2
    assert f"--folds: needs --freeze backbone and features computed once; {why}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
