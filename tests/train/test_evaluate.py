import math

import pytest
import torch
from torch import nn

from data.cache.prepared import Decoded
from data.loading.loader import Images, InOrder, batches_on, build_loader
from data.reading.decode import Resize
from data.reading.leaves import table
from data.reading.splits import Split
from data.sources import load_splits
from models.loading import load_model
from train.config.metrics import choose_metric, metric_names
from train.errors import ConfigError
from train.evaluate import evaluate, of_first_classes
from train.precision import Precision

CPU = torch.device("cpu")
NAMES = ["angular_leaf_spot", "bean_rust", "healthy"]


def metrics_at(batch_size, precision_name="fp32", samples=50):
    torch.manual_seed(3)
    loaded = load_model("builtin:tiny", NAMES)
    precision = Precision(precision_name, CPU)
    loaded.model.vit.to(precision.dtype)
    nn.init.normal_(loaded.model.vit.classifier.weight, std=2.0)  # so that it predicts more than one class
    wanted = loaded.model.preprocessing
    resize = Resize(wanted.height, wanted.width, wanted.interpolation)
    split = load_splits("builtin:leaves", max_train_samples=3, max_eval_samples=samples).validation
    loader = build_loader(Images(Decoded(split, resize), split.labels), InOrder(len(split), batch_size))
    return evaluate(loaded.model, batches_on(CPU, loader), precision, NAMES)


def test_metrics_do_not_depend_on_the_batch_size():
    one, seven, all_at_once = (metrics_at(size) for size in (1, 7, 32))
    assert one.confusion == seven.confusion == all_at_once.confusion
    assert sum(map(sum, one.confusion)) == one.samples == 50
    for name in one.values:
        assert one.values[name] == pytest.approx(seven.values[name], abs=1e-6)
        assert one.values[name] == pytest.approx(all_at_once.values[name], abs=1e-6)
    # a mean of batch means would differ by far more: the last of 50 in sevens is one image alone


def test_the_loss_is_the_mean_over_images_in_float64():
    losses = [metrics_at(size, "fp64").values["loss"] for size in (1, 7, 32)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)


class Fixed(nn.Module):
    """Answers what it is told to, whatever the picture."""

    def __init__(self, predictions, classes):
        super().__init__()
        self.answers = 10.0 * torch.nn.functional.one_hot(torch.tensor(predictions), classes)

    def forward(self, pixels):
        return self.answers[pixels[:, 0, 0, 0].long()]


def judge(predictions, labels, names):
    batch = {
        "pixel_values": torch.arange(len(labels)).view(-1, 1, 1, 1).expand(-1, 3, 1, 1),
        "labels": torch.tensor(labels),
    }
    return evaluate(Fixed(predictions, len(names)), [batch], Precision("fp32", CPU), names)


def test_rates_are_those_counted_by_hand():
    found = judge([0, 0, 1, 2, 2, 2], [0, 1, 1, 1, 2, 2], ["a", "b", "c"])
    assert found.confusion == [[1, 0, 0], [1, 1, 1], [0, 0, 2]]
    assert found.values["accuracy"] == pytest.approx(4 / 6)
    assert found.values["precision/a"] == pytest.approx(1 / 2) and found.values["recall/b"] == pytest.approx(1 / 3)
    f1 = [2 / 3, 1 / 2, 4 / 5]
    assert [found.values[f"f1/{name}"] for name in "abc"] == pytest.approx(f1)
    assert found.values["f1_macro"] == pytest.approx(sum(f1) / 3)
    right, wrong = math.log(math.e**10 + 2) - 10, math.log(math.e**10 + 2)
    assert found.values["loss"] == pytest.approx((4 * right + 2 * wrong) / 6, rel=1e-5)


def test_two_classes_and_a_class_without_images_work():
    assert judge([0, 1, 1], [0, 1, 0], ["a", "b"]).values["accuracy"] == pytest.approx(2 / 3)
    assert judge([0, 1], [0, 1], ["a", "b", "c"]).confusion[2] == [0, 0, 0]


def test_of_a_model_with_more_classes_the_averages_are_over_those_with_images():
    everything = judge([0, 0, 1, 3, 3, 0], [0, 1, 1, 1, 0, 0], ["a", "b", "c", "d"])
    found = of_first_classes(everything, ["a", "b", "c"])  # c has no image, d is not among the data's classes
    assert found.confusion == [[2, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 0]]
    for name in ("loss", "accuracy", "f1/a", "recall/b"):
        assert found.values[name] == everything.values[name]
    assert found.values["accuracy"] == pytest.approx(3 / 6)
    assert found.values["recall_macro"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found.values["balanced_accuracy"] == pytest.approx(everything.values["balanced_accuracy"])
    assert found.values["precision_macro"] == pytest.approx((2 / 3 + 1) / 2)
    assert found.values["f1_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert set(found.values) == set(metric_names(["a", "b", "c"]))


def test_evaluation_leaves_the_mode_and_the_gradients_as_they_were():
    model = load_model("builtin:tiny", NAMES).model.train()
    batch = {"pixel_values": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "labels": torch.tensor([0, 1])}
    evaluate(model, [batch], Precision("fp32", CPU), NAMES)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_any_logged_metric_can_choose_the_best_and_no_other():
    assert choose_metric("loss", None, NAMES) == ("loss", False)
    assert choose_metric("eval_accuracy", None, NAMES) == ("accuracy", True)
    assert choose_metric("recall/healthy", None, NAMES) == ("recall/healthy", True)
    assert choose_metric("loss", True, NAMES) == ("loss", True)
    assert set(metrics_at(32, samples=6).values) == set(metric_names(NAMES))
    with pytest.raises(ConfigError, match="choose from loss, accuracy, balanced_accuracy, f1_macro"):
        choose_metric("acuracy", None, NAMES)


def test_the_table_of_leaves_reads_as_a_split():
    leaves = table("validation", 1, 6)
    assert len(Split("validation", leaves, list(leaves["labels"]))) == 6
