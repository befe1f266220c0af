import io
import json

import pytest
import torch
from PIL import Image

from data.plan import Plan
from tests.train.checkpoint.test_checkpoint import make_state
from train.checkpoint.folder import CheckpointFolder
from train.config.record import read_log
from train.evaluate import Metrics
from train.output.model_card import as_text
from train.output.pictures import ACROSS, SIDE, confusion_picture, prediction_picture
from train.output.results import eval_results, train_results
from train.output.run_output import RunOutput
from train.recipes.predictions import Prediction
from train.recipes.statistics import wilson_interval
from train.system.lock import Lock


def test_rates_count_the_images_of_the_updates_that_were_done():
    state = make_state()
    state.seconds |= {"data": 0.5, "compute": 1.5, "saving": 9.0}
    state.step = 4  # 3 + 3 + 3 + 1 images: the fourth update ends the epoch
    state.loss_total.fill_(6.0)
    results = train_results(state, Plan(10, 3, 1, 8, 42))
    assert results["train_samples_per_second"] == 5 and results["train_loss"] == 1.5 and results["epoch"] == 1.0
    assert results["train_runtime"] == 2.0 and results["saving_seconds"] == 9.0


def test_names_that_others_wrote_are_shown_as_they_are_in_the_card():
    assert as_text("a|b <i>x\n`q`") == r"a\|b &lt;i&gt;x \`q\`"


def test_the_interval_of_an_evaluation_counts_its_diagonal():
    metrics = Metrics({"loss": 0.1, "accuracy": 0.9}, [[4, 1], [0, 5]], 10, 1.0)
    assert eval_results(metrics)["eval_accuracy_wilson_95"] == pytest.approx(list(wilson_interval(9, 10)))


def test_a_confusion_matrix_is_a_picture_whose_diagonal_is_dark():
    picture = confusion_picture([[9, 0], [0, 9]], ["angular_leaf_spot", "healthy"])
    assert picture.dtype == torch.uint8 and picture.shape[0] == 3
    cell = picture[:, 150:, 150:].float().mean(0)
    assert cell[:50, :50].mean() < cell[:50, 60:110].mean()


def test_the_picture_of_predictions_shows_the_worst_mistake_first_and_right_ones_last():
    def grey(index):
        file = io.BytesIO()
        Image.new("L", (40, 20), 20 * index).save(file, "PNG")
        return file.getvalue()

    found = [Prediction(index, 0, index % 2, 0.9, 0.1, float(index)) for index in range(12)]  # odd ones are wrong
    picture = prediction_picture(found, grey, ["cat", "dog"])
    assert picture.shape[0] == 3 and picture.shape[2] == ACROSS * SIDE
    rows, columns = picture.shape[1] // 2, [20 + SIDE * number for number in range(ACROSS)]
    shown = [int(picture[0, row, column]) // 20 for row in (20, rows + 20) for column in columns]
    assert shown[:6] == [11, 9, 7, 5, 3, 1] and shown[6:12] == [0, 2, 4, 6, 8, 10]


def open_log(folder, **where):
    return RunOutput(CheckpointFolder(folder, "run1", {}, keep=None), Lock(), 10, **where)


def test_the_log_is_truncated_to_the_checkpoint_and_continued(tmp_path):
    state = make_state()
    with open_log(tmp_path) as output:
        for step in range(1, 5):
            state.count_update(torch.tensor(float(step)), True)
            output.log_training(state, step / 2, state.take_logged_loss(), 1.0, 0.1)
            if step == 2:
                output.save_checkpoint(state)
    assert [line["loss"] for line in read_log(tmp_path)] == [1, 2, 3, 4]
    log_bytes = json.loads((tmp_path / "checkpoint-2" / "state.json").read_text())["log_bytes"]
    with open_log(tmp_path, step=2, log_bytes=log_bytes) as output:
        state.step = 2
        state.count_update(torch.tensor(7.0), True)
        output.log_training(state, 1.5, state.take_logged_loss(), 1.0, 0.1)
    assert [(line["step"], line["loss"]) for line in read_log(tmp_path)] == [(1, 1), (2, 2), (3, 7)]


def test_the_logged_loss_is_the_mean_since_the_last_record(tmp_path):
    state = make_state()
    with open_log(tmp_path) as output:
        for loss in (1.0, 2.0, 6.0):
            state.count_update(torch.tensor(loss), True)
        output.log_training(state, 1.0, state.take_logged_loss(), 1.0, 0.1)
        state.count_update(torch.tensor(5.0), False)
        output.log_training(state, 1.0, state.take_logged_loss(), 1.0, 0.1)
    first, second = read_log(tmp_path)
    assert (first["loss"], second["loss"]) == (3.0, 5.0)
    assert "skipped_updates" not in first and second["skipped_updates"] == 1
    assert json.dumps(first).startswith('{"step": 3, "epoch": 1.0, "loss"')
