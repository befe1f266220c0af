"""`plainloop compare` on real runs."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.running import ROOT, run_here
from tests.train.test_main import folder_of
from train.commands.compare import main
from train.commands.plainloop import main as plainloop

SHORT = (
    *("--preset", "debug", "--max_eval_samples", 12, "--max_train_samples", 24, "--max_steps", 2, "--eval_steps", 1),
    *("--save_steps", 1, "--split_seed", 42, "--metric_for_best_model", "accuracy", "--lr_scheduler_type", "constant"),
    "--output_dir",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of one recipe, and one of another."""
    root = tmp_path_factory.mktemp("runs")
    assert run_here(*SHORT, root / "a42") == 0
    # Resumed: its record then has 0.0 for the 0 of warmup_steps, which makes no other recipe.
    assert run_here(*SHORT, root / "a43", "--seed", 43, "--logging_steps", 1, "--stop_after", 1) == 0
    assert run_here("--output_dir", root / "a43", "--resume_from_checkpoint", "auto") == 0
    assert run_here(*SHORT, root / "b42", "--learning_rate", "0.02") == 0
    return root


def compare(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


def test_runs_that_differ_in_the_seed_are_one_recipe_and_figures_are_those_of_the_runs(runs, capsys):
    found = json.loads(compare(capsys, runs, "--json", "--metric", "balanced_accuracy"))
    one, other = found["recipes"]
    assert (one["flags"], other["flags"]) == ({"learning_rate": 0.001}, {"learning_rate": 0.02})
    assert (one["seeds"], other["seeds"]) == ([42, 43], [42])
    results = [json.loads((runs / name / "eval_results.json").read_text()) for name in ("a42", "a43")]
    for name, recorded in (("accuracy", "eval_accuracy"), ("balanced_accuracy", "eval_recall_macro")):
        assert one[f"{name}_of_runs"] == pytest.approx([result[recorded] for result in results])
    assert one["loss"] == pytest.approx(sum(result["eval_loss"] for result in results) / 2)
    (comparison,) = found["comparisons"]
    assert comparison["difference"] == pytest.approx(other["balanced_accuracy"] - one["balanced_accuracy"])
    assert comparison["interval"][0] <= comparison["difference"] <= comparison["interval"][1]
    assert any("one seed" in note for note in found["notes"]) and any("flatters" in note for note in found["notes"])


def test_the_table_has_a_row_for_each_recipe_and_a_sentence_for_each_comparison(runs, capsys):
    found = json.loads(compare(capsys, runs, "--json"))
    lines = compare(capsys, runs).splitlines()
    assert lines[0].startswith("judged on the same 12 validation images")
    assert lines[1].split()[:3] == ["recipe", "seeds", "accuracy"]
    assert lines[2].startswith("learning_rate=0.001  2      ") and lines[3].startswith("learning_rate=0.02   1      ")
    assert lines[4] == found["comparisons"][0]["text"] and lines[4].startswith("learning_rate=0.02 ")
    assert compare(capsys, runs).splitlines() == lines  # the draws are seeded


def test_a_series_is_compared_in_the_order_that_was_asked_for(runs, tmp_path, capsys):
    for name in ("a42", "b42"):
        shutil.copytree(runs / name, tmp_path / name)
    (tmp_path / "series.json").write_text('{"b42": {}, "a42": {}}')
    found = json.loads(compare(capsys, tmp_path, "--json"))
    assert [recipe["flags"]["learning_rate"] for recipe in found["recipes"]] == [0.02, 0.001]
    (tmp_path / "series.json").write_text('["b42"]')
    assert "series.json: cannot be used" in refusal(capsys, tmp_path)


def changed(run, to, **flags):
    """A copy of a run whose record has other flags."""
    shutil.copytree(run, to)
    record = json.loads((to / "run.json").read_text())
    record["config"] |= flags
    (to / "run.json").write_text(json.dumps(record))


def test_recipes_that_differ_in_much_are_numbered(runs, tmp_path, capsys):
    shutil.copytree(runs / "a42", tmp_path / "a")
    changed(runs / "b42", tmp_path / "b", augment="flip", label_smoothing=0.1, random_resized_crop=0.4)
    lines = compare(capsys, tmp_path).splitlines()
    flags = "learning_rate=0.02"
    assert lines[1].startswith("recipe 1: ") and lines[2].startswith("recipe 2: ") and flags in lines[2]
    assert lines[4].startswith("recipe 1  1 ") and "recipe 2 and recipe 1 are not told apart" in lines[6]


def test_runs_are_compared_by_the_metric_that_chose_their_best_models(runs, tmp_path, capsys):
    for name in ("a42", "b42"):
        changed(runs / name, tmp_path / name, metric_for_best_model="eval_balanced_accuracy")
    assert json.loads(compare(capsys, tmp_path, "--json"))["metric"] == "balanced_accuracy"
    assert json.loads(compare(capsys, tmp_path, "--json", "--metric", "accuracy"))["metric"] == "accuracy"
    assert json.loads(compare(capsys, tmp_path / "a42", runs / "b42", "--json"))["metric"] == "accuracy"


def test_one_seed_each_is_judged_by_mcnemar(runs, capsys):
    found = json.loads(compare(capsys, runs / "a42", runs / "b42", "--json"))["comparisons"][0]
    assert found["wins"] - found["losses"] == pytest.approx(12 * found["difference"])
    assert 0 < found["p_value"] <= 1 and "McNemar" in found["text"]


def test_one_recipe_alone_is_a_row_with_its_interval(runs, capsys):
    lines = compare(capsys, runs / "a42").splitlines()
    assert len(lines) == 5 and lines[2].startswith("all runs") and "one seed" in lines[3] and "flatters" in lines[4]
    found = json.loads(compare(capsys, runs / "a42", "--json"))["recipes"][0]
    recorded = json.loads((runs / "a42" / "eval_results.json").read_text())["eval_accuracy_wilson_95"]
    assert found["interval_95"] == pytest.approx(recorded)


def test_data_are_compared_by_content(tmp_path, capsys):
    one, moved, more = (folder_of(["cat", "dog"], tmp_path / name) for name in ("one", "moved", "more"))
    shutil.copy(one / "validation/cat/0.png", more / "train/cat/another.png")
    flags = (*SHORT[:2], *SHORT[6:-1], "--max_train_samples", 99)
    for seed, data in enumerate((one, moved, more)):
        out = tmp_path / "runs" / data.name
        assert run_here(*flags, "--dataset", data, "--seed", seed, "--output_dir", out) == 0
    found = json.loads(compare(capsys, *(tmp_path / "runs" / data.name for data in (one, moved, more)), "--json"))
    first, second = found["recipes"]
    assert first["seeds"] == [0, 1] and second["seeds"] == [2]
    assert str(more) in second["in_words"] and second["flags"].keys() == {"data"}


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused_in_a_line(runs, tmp_path, capsys):
    assert "name the folders" in refusal(capsys)
    assert "there is no such folder" in refusal(capsys, runs / "c")
    assert "holds no run" in refusal(capsys, tmp_path)
    assert "holds no run" in refusal(capsys, runs / "a42" / "run.json")
    assert "are the same run" in refusal(capsys, runs / "a42", runs)
    assert run_here(*SHORT, tmp_path / "again") == 0
    assert "same recipe with the same seed" in refusal(capsys, runs / "a42", tmp_path / "again")
    assert run_here(*SHORT, tmp_path / "until", "--until", "accuracy=0") == 0
    assert "until=accuracy=0" in compare(capsys, runs / "a42", tmp_path / "until")  # another length, another recipe
    assert run_here(*SHORT, tmp_path / "others", "--split_seed", 7) == 0
    assert "judged on different images" in refusal(capsys, runs / "a42", tmp_path / "others")
    assert run_here(*SHORT, tmp_path / "half", "--stop_after", 1) == 0
    command = refusal(capsys, runs / "a42", tmp_path / "half").partition("either way run: ")[2].split()
    assert plainloop(command[1:]) == 0
    assert "same recipe with the same seed" in refusal(capsys, runs / "a42", tmp_path / "half")


@pytest.mark.parametrize(
    ("file", "text"),
    [("predictions.csv", "x"), ("eval_results.json", '{"eval_loss": 1, "eval_samples": 9}'), ("run.json", "[]")],
)
def test_a_damaged_run_is_refused_in_a_line(runs, tmp_path, file, text, capsys):
    shutil.copytree(runs / "a42", tmp_path / "run")
    (tmp_path / "run" / file).write_text(text)
    assert "cannot be used" in refusal(capsys, tmp_path / "run")


def test_it_answers_without_torch(runs):
    code = "import sys; from train.commands.compare import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code, runs], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "0 False", found.stderr
