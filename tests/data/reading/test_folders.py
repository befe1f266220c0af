"""Every file of an image folder is in the split and class that the rules say, once, or the folder is refused."""

import os
import shutil
from pathlib import Path

import pytest

from data import DataError
from data.reading.folders import arrange
from data.reading.tables import DatasetSpec, find_data
from data.sources import load_for_evaluation, load_splits
from tests.data.making_images import png
from tests.data.reading.layouts import build, expected, random_layout
from tests.data.test_sources import class_folders, class_in_labels, write
from train.main import main


def placed(root: Path) -> dict[str, tuple[str, str]]:
    """Path -> (split, class), as the program reads a folder."""
    data = find_data(DatasetSpec(str(root)))
    found = {}
    for split in data.files:
        read = data.read(split)
        for row, value in zip(read.table, read.values, strict=True):
            path = str(Path(row["image"]["path"]).relative_to(root.resolve()))
            assert path not in found
            found[path] = (split, read.names[value])
    return found


def check_layout(root: Path, seed: int) -> bool:
    """Whether the layout was read, and not refused; asserts that this is as it should be."""
    paths = random_layout(seed)
    root.mkdir()
    build(root, paths, seed)
    right = expected(paths)
    if right is None:
        with pytest.raises(DataError, match="--dataset"):
            placed(root)
        return False
    assert placed(root) == right
    return True


def test_random_layouts_are_read_by_the_rules(tmp_path):
    read = [check_layout(tmp_path / str(seed), seed) for seed in range(60)]
    assert 30 < sum(read) < 60  # both outcomes occur


@pytest.mark.reliability
def test_many_random_layouts_are_read_by_the_rules(tmp_path):
    read = [check_layout(tmp_path / str(seed), seed) for seed in range(1000, 1400)]
    assert sum(read) > 200 and not all(read)


def counts(folder, **options):
    splits = load_splits(DatasetSpec(str(folder), **options))
    return len(splits.train), len(splits.validation), splits.label_names, splits.notes


@pytest.mark.parametrize("name", ["seg_train", "train2017", "my-Val"])
def test_a_folder_that_is_nearly_named_like_a_split_is_refused_with_the_way_out(name, tmp_path):
    folder = write(tmp_path / "d", class_folders(f"{name}/", "other/"))
    with pytest.raises(DataError, match="--train_dir"):
        counts(folder)
    assert counts(folder, folders={"train": name, "validation": "other"})[:3] == (8, 8, ["a", "b"])


def test_splits_in_the_only_folder_are_named(tmp_path):
    folder = write(tmp_path / "d", class_folders("beans/train/", "beans/val/"))
    with pytest.raises(DataError, match=f"name {folder}/beans"):
        counts(folder)
    assert counts(folder / "beans")[:2] == (8, 8)


def test_named_folders_are_splits_whatever_their_names_and_nothing_else_is(tmp_path):
    folder = write(tmp_path / "d", class_folders("test/", "train/", "more/deep/"))
    assert counts(folder, folders={"train": "test", "validation": "more/deep"})[:2] == (8, 8)
    for wrong, said in (
        ("nowhere", "is no folder inside"),
        ("/etc", "is no folder inside"),
        ("../d", "is no folder inside"),
    ):
        with pytest.raises(DataError, match=f"--train_dir {wrong}: {said}"):
            counts(folder, folders={"train": wrong})
    with pytest.raises(DataError, match="overlap"):
        counts(folder, folders={"train": ".", "validation": "test"})


@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_column_cannot_be_named_where_there_is_no_table(kind, tmp_path):
    folder = write(tmp_path / "d", class_folders("train/", "val/"))
    assert counts(folder, **{f"{kind}_column": kind})[:2] == (8, 8)
    with pytest.raises(DataError, match=f"--{kind}_column_name foo: "):
        counts(folder, **{f"{kind}_column": "foo"})


def test_a_test_split_is_neither_trained_nor_validated_on(tmp_path):
    train, validation, _, notes = counts(write(tmp_path / "d", class_folders("Training/", "Testing/", count=10)))
    assert (train, validation) == (16, 4) and "other splits: test" in notes


def test_two_folders_for_one_split_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"'(val|valid)' and '(val|valid)' are both the valid"):
        counts(write(tmp_path / "d", class_folders("train/", "val/", "valid/")))


def test_one_file_in_two_splits_by_a_link_is_refused(tmp_path):
    folder = write(tmp_path / "d", class_folders("train/"))
    (folder / "val").symlink_to("train")
    with pytest.raises(DataError, match="are the same file, in"):
        counts(folder)


def test_a_loop_of_links_is_refused(tmp_path):
    folder = write(tmp_path / "d", class_folders("train/"))
    (folder / "train/a/again").symlink_to(folder)
    with pytest.raises(DataError, match="train/a/again is a link to a folder that contains it"):
        counts(folder)


def test_pipes_and_broken_links_are_never_opened_and_are_named(tmp_path):
    folder = write(tmp_path / "d", class_folders("train/", "val/"))
    os.mkfifo(folder / "train/a/9.png")
    os.mkfifo(folder / "train/a/notes.txt")
    (folder / "train/b/9.png").symlink_to("nowhere")
    train, _, _, notes = counts(folder)
    assert train == 8 and any("3 pipes" in note and "train/a/9.png" in note for note in notes)
    for number in range(4):
        (folder / f"train/a/{number}.png").unlink()
    with pytest.raises(DataError, match="class a holds no regular file"):
        counts(folder)


@pytest.mark.parametrize("ending", [".HEIC", ".dng", ".jxl", ".mp4"])
def test_a_class_that_would_lose_all_its_images_is_refused_by_name(ending, tmp_path):
    files = class_folders("train/", "val/") | {f"train/bird/{n}{ending}": b"x" for n in range(3)}
    with pytest.raises(DataError, match=rf"class bird would lose all its 3 files: \{ending.lower()}"):
        counts(write(tmp_path / "d", files))


def test_what_is_left_out_is_named_by_ending_and_class(tmp_path):
    files = class_folders("train/", "val/") | {"train/a/x.heic": b"x", "train/b/y.heic": b"x", "train/a/c.txt": b"x"}
    notes = counts(write(tmp_path / "d", files))[3]
    assert "left out: .heic: 2 files in class a, class b: not read as images; convert them to JPEG" in notes
    assert "left out: .txt: 1 file in class a: not read as images" in notes


def test_names_that_differ_in_how_accents_are_stored_are_one_class(tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    for folder in (
        write(
            tmp_path / "splits",
            class_folders("train/", classes=[composed, "b"]) | class_folders("val/", classes=[apart, "b"]),
        ),
        write(
            tmp_path / "one",
            class_folders("train/", "val/", classes=[composed, "b"])
            | class_folders("train/", classes=[apart], count=2),
        ),
    ):
        _, _, names, notes = counts(folder)
        assert names == ["b", composed] and any(note.startswith("joined: ") for note in notes)


def test_the_rows_of_a_split_keep_the_order_of_their_paths():
    paths = ["train/a b/1.png", "train/a/2.png", "train/a/10.png", "train/a.x/1.png"]
    assert arrange(paths, "d", {})[0]["train"].images == sorted(paths)
    bare = [path.removeprefix("train/") for path in paths]
    assert arrange(bare, "d", {})[0]["train"].images == ["a/10.png", "a/2.png", "a b/1.png", "a.x/1.png"]


def test_a_name_that_is_not_utf8_is_refused_in_print(tmp_path):
    folder = write(tmp_path / "d", class_folders("train/"))
    (folder / "train/a/0.png").rename(folder / "train/a" / os.fsdecode(b"\xff.png"))
    with pytest.raises(DataError, match="not UTF-8; rename it") as caught:
        counts(folder)
    assert str(caught.value).isprintable()


# -- tables ------------------------------------------------------------------------------------------------


def table_set(folder: Path, content: bytes | str, name: str = "metadata.csv", count: int = 6) -> Path:
    data = content.encode() if isinstance(content, str) else content
    return write(folder, {f"train/{number}.png": png(number) for number in range(count)} | {f"train/{name}": data})


def rows(labels, head="file_name,label", mark=","):
    return "\n".join([head, *(f"{number}.png{mark}{label}" for number, label in enumerate(labels))]) + "\n"


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["001", "01", "1"] * 2, ["001", "01", "1"]),
        (["None", "null", "NA"] * 2, ["NA", "None", "null"]),
        (["True", "False"] * 3, ["False", "True"]),
        (["1.0", "2.0"] * 3, ["1.0", "2.0"]),
        (["10", "9"] * 3, ["9", "10"]),
        (["1e5", "nan"] * 3, ["1e5", "nan"]),
        (["2024-01-01", "2023-01-01"] * 3, ["2023-01-01", "2024-01-01"]),
    ],
)
def test_labels_are_text_as_written(labels, names, tmp_path):
    splits = load_splits(DatasetSpec(str(table_set(tmp_path / "d", rows(labels)))))
    assert splits.label_names == names
    for split in (splits.train, splits.validation):
        for index, name in enumerate(class_in_labels(splits, split)):
            assert labels[int(Path(split.image_name(index)).stem)] == name


TEXT = rows(["cat", "dog"] * 3)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.encode("utf-16"),
        TEXT.replace(",", ";").encode(),
        TEXT.replace(",", "\t").encode(),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        b"sep=;\r\n" + TEXT.replace(",", ";").replace("\n", "\r\n").encode(),
        rows(['"cat"', '"dog"'] * 3).encode(),
        rows(["cat,1", "dog,2"] * 3, "file_name,label,age").encode(),
    ],
    ids=["BOM", "UTF-16", "semicolons", "tabs", "CRLF", "CR", "Excel", "quotes", "more columns"],
)
def test_tables_of_every_kind_are_read(content, tmp_path):
    assert counts(table_set(tmp_path / "d", content))[2] == ["cat", "dog"]


def test_json_lines_keep_numbers_as_written(tmp_path):
    lines = "".join(f'{{"file_name": "{n}.png", "label": {(1.50, "true")[n % 2]}}}\n' for n in range(6))
    assert counts(table_set(tmp_path / "d", lines, "metadata.jsonl"))[2] == ["1.5", "true"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (rows(["a", "b"] * 3).replace("5.png", "/x/5.png"), "/x/5.png is absolute"),
        (rows(["a", "b"] * 3).replace("5.png", "../train/5.png"), "leaves the table's folder"),
        (rows(["a", "b"] * 3).replace("5.png", "C:\\5.png"), "is absolute"),
        (rows(["a", "b"] * 3).replace("5.png", "nowhere.png"), "1 of 6 files are not there: train/nowhere.png"),
        (rows(["a", "b"] * 3) + "0.png,b\n", "0.png is listed as a and as b"),
        (rows(["a", "", "b"] * 2), "2 of 6 rows have no value in 'label': 1.png, 4.png"),
        (rows(["a", "b"] * 3) + ",b\n", "1 of 7 rows have no value in 'file_name'"),
        (rows(["a", "b"] * 3, "file,label"), "no column seems to be the image"),
        (rows(["a", "b"] * 3, "file_name,weight"), "no column seems to be the label"),
        (rows(["a", "b"] * 3) + "7.png\n", "row 7 has 1 values for 2 columns"),
        (rows(["a", "b"] * 3, "label,label"), "two columns have the same name"),
        (TEXT.encode("utf-16-le"), "save it as UTF-8"),
        ("file_name,label\n0.png,caf\u00e9\n".encode("latin-1"), "is not UTF-8"),
        (b"", "is empty"),
        ('file_name,label\n"0.png,a\n', "cannot be read"),
        (b"file_name,label\n", "and no rows"),
        (
            rows(["a", "b"] * 3, "x_file_name,label")
            .replace("x_file_name", "x_file_name,y_file_name")
            .replace(".png,", ".png,z,"),
            "could all be the image",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_by_name(content, said, tmp_path):
    with pytest.raises(DataError) as caught:
        counts(table_set(tmp_path / "d", content))
    assert said in str(caught.value) and "metadata.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_anywhere_else_or_twice_is_refused(tmp_path):
    deep = write(tmp_path / "deep", class_folders("train/") | {"train/a/metadata.csv": b"file_name,label\n"})
    with pytest.raises(DataError, match=r"train/a/metadata\.csv is not read there"):
        counts(deep)
    both = table_set(tmp_path / "both", TEXT)
    (both / "metadata.jsonl").write_text('{"file_name": "train/0.png", "label": "x"}')
    with pytest.raises(DataError, match="both name classes"):
        counts(both)


def test_a_table_at_the_root_serves_all_splits_by_their_folders(tmp_path):
    listed = [f"{split}/{number}.png" for split in ("train", "val") for number in range(4)]
    table = "file_name,label\n" + "".join(f"{path},{'ab'[n % 2]}\n" for n, path in enumerate(listed))
    folder = write(tmp_path / "d", {path: png(n) for n, path in enumerate(listed)} | {"metadata.csv": table.encode()})
    assert counts(folder)[:3] == (4, 4, ["a", "b"])
    (folder / "metadata.csv").write_text(table + "other/1.png,a\n")
    with pytest.raises(DataError, match=r"other/1\.png is in none of the splits"):
        counts(folder)


def test_images_that_the_table_does_not_name_are_said(tmp_path):
    folder = table_set(tmp_path / "d", rows(["a", "b"] * 2))
    assert "left out: 2 images not in train/metadata.csv: train/4.png, train/5.png" in counts(folder)[3]


@pytest.mark.parametrize("splits", [("val",), ("train", "val"), ("train",)])
def test_an_evaluation_alone_needs_no_train_split_and_reads_none(splits, tmp_path):
    folder = write(tmp_path / "d", class_folders(*(f"{split}/" for split in splits), count=10))
    if "val" in splits and "train" in splits:
        (folder / "train/metadata.csv").write_text("broken")
    found = load_for_evaluation(DatasetSpec(str(folder)))
    assert len(found.train) == 0 and len(found.validation) == (20 if "val" in splits else 4)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_an_evaluation_alone_runs_without_a_train_split(cache, tmp_path):
    write(tmp_path / "d", class_folders("train/", "val/", count=3))
    flags = ("--preset", "debug", "--dataset", tmp_path / "d", "--cache_dir", tmp_path / "cache")
    assert main([*map(str, flags), "--max_steps", "1", "--output_dir", str(tmp_path / "run")]) == 0
    shutil.rmtree(tmp_path / "d/train")
    alone = ("--model", tmp_path / "run", "--eval_only", "true", "--image_cache", cache)
    assert main([*map(str, flags), *map(str, alone)]) == 0


@pytest.mark.parametrize(
    ("parents", "said"),
    [
        (("train", "test"), "hold images and no class folders"),
        (("TrainSet/a", "TrainSet/b", "ValSet/a"), "may be a split or a class"),
        (("trainA/a", "testB/b"), "may be a split or a class"),
        (("one/train/a", "one/train/b", "two/train/a"), "the splits are one folder deeper"),
        (("all/train/a", "all/val/a", "docs"), "the splits are one folder deeper"),
        (("train/a", "train/b", "other/c"), "lie side by side"),
    ],
)
def test_splits_never_become_classes(parents, said, tmp_path):
    files = {f"{parent}/{number}.png": png(number) for parent in parents for number in range(3)}
    with pytest.raises(DataError, match=said):
        counts(write(tmp_path / "d", files))


def test_a_validation_split_that_cannot_be_read_is_not_made_up_from_training_images(tmp_path):
    files = class_folders("train/") | {f"val/{name}/0.heic": b"x" for name in "ab"}
    with pytest.raises(DataError, match="class a would lose all its 1 files"):
        counts(write(tmp_path / "d", files))
    folder = write(tmp_path / "linked", class_folders("train/"))
    (folder / "val").symlink_to("nowhere")
    with pytest.raises(DataError, match="val is a pipe, a device or a link to nothing"):
        counts(folder)


@pytest.mark.parametrize("other", ["val", "val/", "./val", "val//"])
def test_one_folder_for_two_splits_is_refused(other, tmp_path):
    folder = write(tmp_path / "d", class_folders("train/", "val/"))
    with pytest.raises(DataError, match="overlap"):
        counts(folder, folders={"train": "train", "validation": "val", "test": other})
    assert counts(folder, folders={"train": "./train/", "validation": other})[:2] == (8, 8)


def test_a_readme_that_declares_other_splits_is_refused_and_one_that_agrees_changes_no_class(tmp_path):
    files = class_folders("train/", "val/", classes=["cat/cam1", "cat/cam2", "dog/cam1"])
    split = "  - split: {}\n    path: {}/**\n"
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    card += f"{split.format('train', '{}')}{split.format('validation', '{}')}---\n"
    folder = write(tmp_path / "d", files | {"README.md": card.format("train", "val").encode()})
    assert counts(folder)[:3] == (12, 12, ["cat", "dog"])
    (folder / "README.md").write_text(card.format("val", "train"))
    with pytest.raises(DataError, match=r"README\.md declares other splits"):
        counts(folder)
    (folder / "README.md").unlink()
    os.mkfifo(folder / "README.md")  # is not opened
    assert counts(folder)[:2] == (12, 12)


def test_a_table_that_is_a_pipe_is_refused_and_never_opened(tmp_path):
    folder = write(tmp_path / "d", class_folders("train/", "val/"))
    os.mkfifo(folder / "train/metadata.csv")
    with pytest.raises(DataError, match=r"train/metadata\.csv is a pipe"):
        counts(folder)


def test_a_table_that_writes_one_file_in_two_forms_is_seen_through(tmp_path):
    table = "file_name,label\ncaf\u00e9.png,a\ncafe\u0301.png,b\n1.png,b\n2.png,a\n"
    files = {"caf\u00e9.png": png(0), "1.png": png(1), "2.png": png(2)}
    with pytest.raises(DataError, match="is listed as a and as b"):
        counts(write(tmp_path / "d", files | {"metadata.csv": table.encode()}))


def test_empty_folders_are_said(tmp_path):
    folder = write(tmp_path / "d", class_folders("train/", "val/"))
    (folder / "train/c").mkdir()
    assert "empty folders: train/c" in counts(folder)[3]


def test_files_that_are_links_to_one_copy_are_read(tmp_path):
    """As the cache of the Hub has them."""
    folder = write(tmp_path / "d", class_folders("train/", "val/"))
    (folder / "val/a/0.png").unlink()
    (folder / "val/a/0.png").symlink_to(folder / "train/a/0.png")
    assert counts(folder)[:2] == (8, 8)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"file_name": "0.png", "label": "a", "label": "b"}', "a key occurs twice"),
        ('{"file_name": "0.png", "label": NaN}', "1 of 1 rows have no value"),
    ],
)
def test_json_that_says_two_things_or_nothing_is_refused(line, said, tmp_path):
    with pytest.raises(DataError, match=said):
        counts(table_set(tmp_path / "d", line, "metadata.jsonl"))
