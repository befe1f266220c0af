"""The page of folders that were made for it: sizes, names of others, damage."""

import io
import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.train.report.making import make_run, write
from train.errors import ConfigError
from train.recipes.predictions import read_images, some_right, worst
from train.report.charts import Line, apart, chart, thinned, tick_text, ticks
from train.report.gather import gather
from train.report.page import MARK, MOST_BYTES, WITH_PICTURES, render, short, write_page
from train.report.pictures import MOST_PICTURES, Pictures, by_cell, chosen, make_pictures

STRANGE = [
    "<script>alert(1)</script>",
    "a\"b' onload=x",
    "\x1b[2J\u202etxt",
    "n" * 10_000,
    "{{ 7 * 7 }}",
    "line\nbreak",
]


def noise(index):
    """A picture that compresses badly, as the largest thumbnails do."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(index).integers(0, 256, (150, 150, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def page_of(folder, image=None):
    run = gather(folder)
    return render([run], [Pictures() if image is None else make_pictures(run.predictions, image)])


def test_names_of_others_are_text(tmp_path):
    names = [f"{name}{number}.jpg" for number in range(10) for name in STRANGE]
    page = page_of(make_run(tmp_path / "run", STRANGE, 60, names=names))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", page)
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, attributes))
    parser.feed(page)
    assert len(found) > 100 and "script" not in {tag for tag, _ in found}
    assert not [name for _, attributes in found for name, _ in attributes if name.startswith(("on", "src", "href="))]
    assert "&lt;script&gt;alert(1)" in page and "\\x1b[2J\\u202etxt" in page and "{{ 7 * 7 }}" in page
    assert "n" * 100 not in page and len(page) < 200_000


@pytest.mark.slow
def test_a_page_of_1000_classes_and_50000_images_stays_small(tmp_path):
    names = [f"class_{number}_of_a_thousand" for number in range(1000)]
    folder = make_run(tmp_path / "run", names, 50_000)
    started = time.perf_counter()
    page = page_of(folder, noise)
    assert time.perf_counter() - started < 30
    assert len(page.encode()) < MOST_BYTES and 100 < page.count("data:image/jpeg") <= MOST_PICTURES
    assert page.count('<tr><th scope="row">class_') > 1000 and 'class="matrix"' not in page
    opened = set(re.findall(r'class="open" popovertarget="(r0-[\d-]+)">\d+ of 50<', page))
    assert len(opened) == 20 and all(f'id="{name}"' in page for name in opened)


def test_40_classes_are_a_matrix_and_every_cell_has_something_to_open(tmp_path):
    page = page_of(make_run(tmp_path / "run", [f"c{n}" for n in range(40)], 20_000), noise)
    buttons = re.findall(r'class="cell \w+" style="[^"]+"\s+popovertarget="([^"]+)"', page)
    parts = re.split(r"<div popover id=", page)[1:]
    assert len(buttons) == len(parts) > 1000 and all("<figure>" in part for part in parts)
    assert page.count("data:image/jpeg") <= MOST_PICTURES and len(page.encode()) < MOST_BYTES


def test_names_that_would_make_the_page_too_large_cost_rows_and_pictures(tmp_path):
    names = [f"{number}{'&' * 100}" for number in range(40)]
    page = page_of(make_run(tmp_path / "run", names, 20_000, names=['"' * 90 + str(n) for n in range(20_000)]), noise)
    assert len(page.encode()) <= MOST_BYTES and "The whole matrix is in eval_results.json" in page


def test_the_figures_and_the_warnings_are_those_of_the_files(tmp_path):
    folder = make_run(tmp_path / "run", ["cat", "dog"], 50)
    page = page_of(folder)
    assert "Warning:</b> 1 image is in both train and validation" in page and "joined: something" in page
    assert "no test split was evaluated" in page and "NaN" not in page and "nan" not in page.replace("finance", "")
    results = json.loads((folder / "eval_results.json").read_text())
    test = {name.replace("eval_", "test_"): value for name, value in results.items()} | {"test_accuracy": 0.4321}
    write(folder, "test_results.json", test)
    page = page_of(folder)
    assert "43.2\u00a0%" in page and "no test split was evaluated" not in page
    (row,) = re.findall(r'<tr><th scope="row">cat</th><td class="n">(\d+)</td>\s*<td class="n">([\d.]+)', page)
    (right, wrong), _ = results["eval_confusion"]
    assert row == (str(right + wrong), f"{100 * right / (right + wrong):.1f}")


def test_the_pictures_are_the_worst_mistakes_some_right_ones_and_each_cells_worst(tmp_path):
    folder = make_run(tmp_path / "run", ["a", "b", "c"], 3000)
    _, predictions = read_images(folder, ["a", "b", "c"])
    wrong = sorted((p for p in predictions if p.label != p.predicted), key=lambda p: -p.loss)
    assert worst(predictions, 5) == wrong[:5]
    right = some_right(predictions, 4)
    losses = sorted(p.loss for p in predictions if p.label == p.predicted)
    assert [right[0].loss, right[-1].loss] == [losses[0], losses[-1]] and len(right) == 4
    picked = chosen(predictions, 200)
    assert len(picked) == len(set(picked)) == 200 and picked[:24] == [p.index for p in wrong[:24]]
    for images in by_cell(predictions).values():
        assert len({image.index for image in images[:10]} & set(picked)) == 10


def test_a_run_that_a_program_started_says_so(tmp_path):
    folder = make_run(tmp_path / "run", ["a", "b"], 20)
    record = json.loads((folder / "run.json").read_text())
    record["config"] |= {"preset": "python", "dataset": None, "model": None}
    del record["train_images"], record["train_counts"], record["data_notes"]  # which no such run has
    write(folder, "run.json", record)
    assert "This run was started from Python" in page_of(folder)
    (folder / "predictions.csv").unlink()
    assert "not finished: all 2000 updates are done" in page_of(folder)


def test_a_page_replaces_a_page_and_nothing_else(tmp_path):
    path = tmp_path / "page.html"
    folder = make_run(tmp_path / "run", ["a", "b"], 20)
    bare, full = page_of(folder), page_of(folder, noise)
    assert write_page(path, bare) and write_page(path, full) and WITH_PICTURES in path.read_text()
    assert not write_page(path, bare) and path.read_text() == full
    path.write_text("<h1>mine</h1>")
    with pytest.raises(ConfigError, match="is not a report of plainloop"):
        write_page(path, full)
    assert path.read_text() == "<h1>mine</h1>" and MARK in bare[:2000]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", "[]", "run.json: cannot be used"),
        ("metrics.jsonl", "{}\n", "metrics.jsonl: cannot be used"),
        ("metrics.jsonl", '{"step": 1, "loss": "x"}\n', "run: cannot be used"),
        ("eval_results.json", "{", "eval_results.json: cannot be used"),
        ("eval_results.json", "{}", "run: cannot be used"),
        ("train_results.json", None, "train_results.json: cannot be used: No such file"),
        ("test_results.json", '{"test_confusion": [[1]]}', "counts other classes"),
        ("predictions.csv", "x", "predictions.csv: cannot be used"),
    ],
)
def test_damage_is_one_line_that_names_the_file(tmp_path, name, content, said):
    folder = make_run(tmp_path / "run", ["a", "b"], 20)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=re.escape(said)):
        page_of(folder)


def test_ticks_are_round_and_span_the_range():
    assert ticks(0.0007, 0.923, 4) == [0, 0.5, 1] and ticks(0.962, 0.985, 4) == [0.96, 0.97, 0.98, 0.99]
    assert ticks(3.0, 3.0, 4)[0] < 3 < ticks(3.0, 3.0, 4)[-1] and ticks(0, 0, 4)[-1] > 0
    assert [tick_text(value) for value in (0.0, 0.25, 0.00015, 1e-7, 1500.0)] == ["0", "0.25", "1.5e-4", "1e-7", "1500"]


def test_a_chart_leaves_out_what_no_axis_has_and_keeps_its_labels_apart():
    assert chart("Loss", [Line("training", [(1, float("nan"))])]) is None
    drawn = chart("Loss", [Line("a", [(1, 1.0), (2, float("inf")), (3, 0.5)]), Line("b", [(3, 0.5)])])
    assert len(drawn.lines[0].dots) == 2 and abs(drawn.lines[0].label_y - drawn.lines[1].label_y) >= 14
    assert drawn.lines[0].colour != drawn.lines[1].colour or drawn.lines[1].colour == 1
    heights = apart([180.0] * 9)
    assert len(set(heights)) == 9 and max(heights) <= 182 and min(heights) >= 20
    assert len(thinned([(step, 1.0) for step in range(100_000)])) <= 400


def test_a_long_name_keeps_its_end():
    assert short("a" * 200 + ".jpg", 20) == "a" * 10 + "…" + "aaaaaa.jpg"
