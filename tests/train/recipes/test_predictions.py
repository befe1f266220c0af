import csv
import io
import itertools
import json
import math

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from data.reading import leaves
from data.sources import load_splits
from tests.running import run_here
from train.config.cli import parse
from train.errors import ConfigError
from train.recipes.predictions import COLUMNS, Prediction, read_predictions, write_predictions
from train.setup.inputs import load_data

SHORT = ("--preset", "debug", "--max_eval_samples", 9, "--max_steps", 4, "--eval_steps", 2, "--save_steps", 2)


def rows(folder):
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_what_transformers_takes_each_image_for(tmp_path):
    out = tmp_path / "run"
    assert run_here(*SHORT, "--output_dir", out) == 0
    split = load_splits("builtin:leaves", max_train_samples=3, max_eval_samples=9).validation
    classify = pipeline("image-classification", str(out))
    found = rows(out)
    assert [row["image"] for row in found] == split.image_names() == [split.image_name(index) for index in range(9)]
    for index, row in enumerate(found):
        answers = classify(Image.open(io.BytesIO(split.read(index))).convert("RGB"), top_k=3)
        scores = {answer["label"]: answer["score"] for answer in answers}
        assert row["label"] == sorted(scores)[split.labels[index]]
        assert row["predicted"] == answers[0]["label"]
        assert float(row["probability"]) == pytest.approx(answers[0]["score"], abs=1e-4)
        assert float(row["label_probability"]) == pytest.approx(scores[row["label"]], abs=1e-4)
    results = json.loads((out / "eval_results.json").read_text())
    right = [row["label"] == row["predicted"] for row in found]
    assert results["eval_accuracy"] == pytest.approx(np.mean(right))
    losses = [-math.log(float(row["label_probability"])) for row in found]
    assert [float(row["loss"]) for row in found] == pytest.approx(losses, abs=1e-4)
    assert results["eval_loss"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_a_run_that_goes_on_is_not_finished_and_ends_with_the_same_file(tmp_path):
    out, flags = tmp_path / "run", (*SHORT, "--output_dir")
    assert run_here(*flags, out, "--stop_after", 2) == 0
    assert not (out / "predictions.csv").exists()
    assert run_here(*flags, out, "--resume_from_checkpoint", "auto") == 0
    whole = (out / "predictions.csv").read_bytes()
    (out / "predictions.csv").write_text("of an earlier end")
    assert run_here(*flags, out, "--resume_from_checkpoint", "auto", "--learning_rate", "1") == 2
    assert (out / "predictions.csv").read_text() == "of an earlier end"  # a refused start changes nothing
    assert run_here(*flags, out, "--resume_from_checkpoint", "auto") == 0
    assert (out / "predictions.csv").read_bytes() == whole


def test_the_images_that_judge_are_the_same_for_every_seed_if_the_split_has_its_own():
    def judges(*flags):
        config = parse([*map(str, SHORT), *flags])
        return load_data(config, offline=False).validation_fingerprint()

    assert judges("--seed=1") == judges("--seed=2", "--split_seed=1") == judges("--seed=3", "--split_seed=1")
    assert judges("--seed=1") == judges("--seed=1", "--max_train_samples=9") != judges("--seed=2")


def test_images_of_a_stream_have_their_number(tmp_path):
    for split, size in (("train", 16), ("validation", 6)):
        leaves.table(split, 1, size).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    out, flags = tmp_path / "run", ("--preset", "trainer", "--model", "builtin:tiny", "--device", "cpu", *SHORT[4:])
    assert run_here(*flags, "--dataset", tmp_path, "--streaming", "--output_dir", out) == 0
    assert [row["image"] for row in rows(out)] == [f"validation image {number} of the stream" for number in range(6)]


def test_names_of_others_are_text_in_a_terminal_and_in_a_spreadsheet(tmp_path):
    names = ["=1+1", "a,b", 'say "x"\n', "\x1b[2Jü", "'quoted", "\udcff"]
    made = [Prediction(index, 0, 1, 0.75, 0.25, 1.4) for index in (0, 1, 2, 3, 4, 5)]
    write_predictions(tmp_path, made, itertools.chain(names, itertools.repeat("more")), ["-cat", "dog"])
    found = rows(tmp_path)
    assert list(found[0]) == COLUMNS and found[0]["label"] == "'-cat" and found[0]["predicted"] == "dog"
    shown = ["'=1+1", "a,b", 'say "x"\n', "\\x1b[2Jü", "''quoted", "\\udcff"]
    assert [row["image"] for row in found] == shown
    assert read_predictions(tmp_path) == [("'-cat", "dog")] * 6


@pytest.mark.parametrize("text", ["", "image,label\n", ",".join(COLUMNS) + "\n", ",".join(COLUMNS) + '\n"a,b\n', "\0"])
def test_a_damaged_file_is_one_line(tmp_path, text):
    (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"predictions.csv: cannot be used: \w"):
        read_predictions(tmp_path)
