import numpy as np
import pytest
import torch

from data.sources import load_for_evaluation
from tests.checkpoints import small_checkpoint
from train.errors import ConfigError, RunError
from train.export.check import AT_SIZES, compare, milliseconds, refuse_lost_accuracy, refuse_other_answers, views
from train.inference.predictor import load_predictor, resize_for
from train.precision import Precision


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Thirteen images of the built-in leaves, and a model of their classes."""
    splits = load_for_evaluation("builtin:leaves", max_eval_samples=13)
    folder = small_checkpoint("vit", tmp_path_factory.mktemp("model"), [*reversed(splits.label_names), "other"])
    return splits, load_predictor(str(folder), Precision("fp32", torch.device("cpu")))


def honest(predictor):
    def run(image):
        pixels = resize_for(predictor.model)(torch.from_numpy(image).permute(2, 0, 1).contiguous())
        return predictor.probabilities(pixels[None])[0].numpy()

    return run


def test_all_images_judge_and_some_of_them_at_three_sizes(judged):
    splits, predictor = judged
    found = list(views(splits, predictor.label_names))
    own = [view for view in found if view.label is not None]
    names = [predictor.label_names[view.label] for view in own]  # the model has them in another order
    assert names == [splits.label_names[label] for label in splits.validation.labels] and len(own) == 13
    copies = len(found) - len(own)
    assert AT_SIZES <= copies <= 2 * AT_SIZES and found[1].pixels.shape != found[2].pixels.shape
    assert all(side % 2 for view in found if view.label is None for side in view.pixels.shape[1:])


def test_the_same_answers_pass_and_are_counted(judged):
    splits, predictor = judged
    found = compare(predictor, honest(predictor), views(splits, predictor.label_names), 0.005)
    assert (found.images, found.equal, found.largest, found.lost) == (13, 13, 0, 0) and found.resized
    refuse_other_answers(found, 0.005)
    refuse_lost_accuracy(found, 0.0)


def test_one_wrong_image_is_found_and_named(judged):
    splits, predictor = judged
    target, right = list(views(splits, predictor.label_names))[7], honest(predictor)

    def run(image):
        same = np.array_equal(image, target.pixels.permute(1, 2, 0).numpy())
        return right(image) + (np.array([0.01, -0.01, 0, 0], dtype=np.float32) if same else 0)

    found = compare(predictor, run, views(splits, predictor.label_names), 0.005)
    assert found.largest == pytest.approx(0.01, abs=1e-6) and found.worst == target.name
    with pytest.raises(RunError, match=r"0\.01, more than the tolerance of 0\.005"):
        refuse_other_answers(found, 0.005)
    refuse_lost_accuracy(found, 0.02)


@pytest.mark.parametrize("position", [0, 5, -1])
def test_a_single_nan_is_refused_wherever_it_stands(judged, position):
    splits, predictor = judged
    images = list(views(splits, predictor.label_names))
    right, calls = honest(predictor), []

    def run(image):
        calls.append(image)
        return right(image) * (np.nan if len(calls) - 1 == position % len(images) else 1)

    found = compare(predictor, run, images, 1.0)
    assert found.worst == images[position].name
    for refuse in (refuse_other_answers, refuse_lost_accuracy):
        with pytest.raises(RunError, match="nan"):
            refuse(found, 1.0)


def test_other_labels_are_refused_unless_it_was_a_close_call(judged):
    splits, predictor = judged
    right = honest(predictor)

    def run(image):  # the two best classes change places
        row = right(image).copy()
        second, first = row.argsort()[-2:]
        row[[first, second]] = row[[second, first]]
        return row

    found = compare(predictor, run, views(splits, predictor.label_names), 0.005)
    assert found.equal == 0 and found.disputed
    with pytest.raises(RunError, match="gets another label"):
        refuse_other_answers(found, 1.0)
    close = compare(predictor, run, views(splits, predictor.label_names), 1.0)
    refuse_other_answers(close, 1.0)
    assert close.disputed == []


def test_lost_accuracy_is_refused_and_gained_accuracy_is_not(judged):
    splits, predictor = judged
    images = [view for view in views(splits, predictor.label_names) if view.label is not None]
    labels = iter([view.label for view in images])
    found = compare(predictor, lambda image: np.eye(4, dtype=np.float32)[next(labels)], images, 0.0)
    assert found.right_after == 13 > found.right > 0
    refuse_lost_accuracy(found, 0.0)
    found = compare(predictor, lambda image: np.array([0, 0, 0, 1], dtype=np.float32), images, 0.0)
    assert found.right > found.right_after == 0
    with pytest.raises(RunError, match="points of accuracy"):
        refuse_lost_accuracy(found, 0.02)


def test_a_file_of_other_classes_or_that_fails_is_refused_in_a_line(judged):
    splits, predictor = judged

    def fails(image):
        raise ValueError("no\nway")

    for run, reason in ((lambda image: np.zeros(3), "gives .3,. numbers"), (fails, "the exported file fails: no way")):
        with pytest.raises(RunError, match=reason):
            compare(predictor, run, views(splits, predictor.label_names), 0.005)
    with pytest.raises(ConfigError, match="angular_leaf_spot"):
        next(views(splits, ["bean_rust", "healthy"]))


def test_speed_is_a_ratio_of_times_measured_in_turns():
    calls = []

    def slow(image):
        calls.append("slow")
        return np.linalg.svd(np.ones((60, 60)))

    def fast(image):
        calls.append("fast")

    one, other, times = milliseconds(slow, fast, [np.zeros(1)])
    assert one > other > 0 and times > 1 and calls[:4] == ["slow", "fast", "slow", "fast"]
