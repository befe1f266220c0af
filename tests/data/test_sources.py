import json
import shutil
from collections import Counter
from dataclasses import fields
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Value

from data import DataError
from data.cache.check import check_images, find_bad_images
from data.reading.splits import Split, Splits
from data.reading.tables import DatasetSpec
from data.sources import load_splits
from tests.data.making_images import png

IMAGE = datasets.Image()
BOTH = ("train", "validation")


def images(count: int) -> list[dict]:
    return [{"bytes": png(number), "path": f"{number}.png"} for number in range(count)]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def class_folders(*parents: str, classes: str = "ab", count: int = 4) -> dict[str, bytes]:
    """`count` images of each class below each parent, all different."""
    names = [f"{parent}{name}/{number}.png" for parent in parents for name in classes for number in range(count)]
    return {name: png(number) for number, name in enumerate(names)}


def parquet(folder: Path, columns: dict[str, list], features: Features, splits: tuple[str, ...] = BOTH) -> Path:
    """The Hub's layout, each split with the same rows."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split in splits:
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "data" / f"{split}-00000.parquet")
    return folder


@pytest.fixture
def load(tmp_path):
    """`load_splits` with its cache in the test's own folder."""

    def load(dataset: Path | str, **options) -> Splits:
        names = {field.name for field in fields(DatasetSpec)} & options.keys()
        asked = {name: options.pop(name) for name in names}
        return load_splits(DatasetSpec(str(dataset), cache_dir=str(tmp_path / "cache"), **asked), **options)

    return load


@pytest.fixture
def refusal(load):
    """The one line with which a dataset is refused."""

    def message(dataset: Path | str, **options) -> str:
        with pytest.raises(DataError) as caught:
            load(dataset, **options)
        assert "\n" not in str(caught.value) and "--" in str(caught.value)
        return str(caught.value)

    return message


def class_in_path(split: Split) -> list[str]:
    return [Path(split.image_name(index)).parent.name for index in range(len(split))]


def class_in_labels(splits: Splits, split: Split) -> list[str]:
    return [splits.label_names[label] for label in split.labels]


# -- layouts -----------------------------------------------------------------------------------------------


def test_beans_has_its_images_and_classes(beans, load):
    splits = load(beans)
    assert (len(splits.train), len(splits.validation), splits.notes) == (1034, 133, [])
    assert splits.label_names == ["angular_leaf_spot", "bean_rust", "healthy"]
    assert Counter(splits.train.labels) == {0: 345, 1: 348, 2: 341}
    assert splits.train.read(0).startswith(b"\xff\xd8") and splits.train.image_name(0).endswith(".jpg")
    assert all(name in splits.train.image_name(i) for i, name in enumerate(class_in_labels(splits, splits.train)))


def test_an_image_folder_gives_each_file_the_class_of_its_folder(tmp_path, load):
    files = class_folders("train/", "validation/", classes="cab")
    splits = load(write(tmp_path / "d", files))
    assert splits.label_names == ["a", "b", "c"] and splits.notes == []
    for split in (splits.train, splits.validation):
        assert len(split) == 12 and class_in_path(split) == class_in_labels(splits, split)
        for index in range(12):
            assert split.read(index) == files[str(Path(split.image_name(index)).relative_to(tmp_path / "d"))]


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
@pytest.mark.parametrize("declared", [False, True], ids=["by folder", "by the dataset's README"])
def test_a_validation_split_is_known_by_its_usual_names(name, declared, tmp_path, load):
    splits = "".join(f"  - split: {split}\n    path: {split}/**\n" for split in ("train", name))
    card = {"README.md": f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n".encode()}
    splits = load(write(tmp_path / "d", class_folders("train/", f"{name}/") | (card if declared else {})))
    assert (len(splits.train), len(splits.validation)) == (8, 8)
    assert {Path(splits.validation.image_name(i)).parts[-3] for i in range(8)} == {name}
    assert not any("held out" in note or "splits" in note for note in splits.notes)


def test_other_splits_and_stray_files_are_noted(tmp_path, load):
    stray = {"notes.txt": b"hi", "train/a/Thumbs.db": b"x", ".hidden": b"x"}
    splits = load(write(tmp_path / "d", class_folders("train/", "val/", "test/") | stray))
    assert (len(splits.train), len(splits.validation)) == (8, 8)
    assert splits.notes == [
        "left out: .txt: 1 file in the folder: not read as images",
        "other splits: test",
    ]


@pytest.mark.parametrize("parent", ["train/", ""], ids=["train only", "class folders at the top"])
def test_without_a_validation_split_a_share_of_each_class_is_held_out(parent, tmp_path, load):
    files = class_folders(parent, classes="a", count=20) | class_folders(parent, classes="b", count=40)
    splits = load(write(tmp_path / "d", files), validation_fraction=0.15)
    assert Counter(splits.validation.labels) == {0: 3, 1: 6} and Counter(splits.train.labels) == {0: 17, 1: 34}
    train, held = ({split.image_name(i) for i in range(len(split))} for split in (splits.train, splits.validation))
    assert not train & held and {str(Path(p).relative_to(tmp_path / "d")) for p in train | held} == files.keys()
    for split in (splits.train, splits.validation):
        assert class_in_path(split) == class_in_labels(splits, split)
    assert splits.notes == ["no validation split: 9 of 60 training images held out (15% of each class, seed 42)"]


def test_the_hold_out_is_a_function_of_the_seed(tmp_path, load):
    folder = write(tmp_path / "d", class_folders("train/", count=30))
    same, again, other = (load(folder, seed=seed).fingerprint() for seed in (1, 1, 2))
    assert same == again != other


def test_a_class_of_one_image_is_trained_on_and_not_held_out(tmp_path, load):
    files = class_folders("train/", classes="a", count=1) | class_folders("train/", classes="bc", count=3)
    splits = load(write(tmp_path / "d", files))
    assert Counter(splits.train.labels) == {0: 1, 1: 2, 2: 2} and Counter(splits.validation.labels) == {1: 1, 2: 1}


@pytest.mark.parametrize("labels", [["cat", "dog"], [3, 10]], ids=["names", "numbers"])
def test_a_table_beside_the_images_is_joined_by_file_name(labels, tmp_path, load):
    of_file = {f"{number}.png": labels[number % 2] for number in range(8)}
    rows = "".join(f"{name},{label}\n" for name, label in reversed(of_file.items()))
    files = {f"train/{name}": png(number) for number, name in enumerate(of_file)}
    splits = load(write(tmp_path / "d", files | {"train/metadata.csv": f"file_name,label\n{rows}".encode()}))
    assert splits.label_names == [str(label) for label in labels] and len(splits.train) == 6
    for split in (splits.train, splits.validation):
        expected = [str(of_file[Path(split.image_name(i)).name]) for i in range(len(split))]
        assert class_in_labels(splits, split) == expected


def test_the_leaves_need_no_files(load):
    splits = load("builtin:leaves", max_train_samples=6, max_eval_samples=3)
    assert (splits.train.labels, splits.validation.labels) == ([0, 1, 2, 0, 1, 2], [0, 1, 2])
    assert splits.train.read(0) != splits.validation.read(0)
    assert find_bad_images([(splits.train, index) for index in range(6)]) == []


# -- columns -----------------------------------------------------------------------------------------------

XY = ["x", "y"]
CLASS = ClassLabel(names=XY)


@pytest.mark.parametrize(
    ("values", "feature", "names"),
    [
        (XY * 2, Value("string"), XY),
        ([10, 3] * 2, Value("int64"), ["3", "10"]),  # by number, not by text
        ([1, 0] * 2, Value("uint8"), ["0", "1"]),
        ([1, 0] * 2, ClassLabel(names=["z", "a"]), ["z", "a"]),  # as declared, not sorted
        ([2, 0] * 2, ClassLabel(names=["p", "q", "r"]), ["p", "q", "r"]),
    ],
    ids=["strings", "integers", "small integers", "declared", "declared but never seen"],
)
def test_labels_of_any_type_become_class_names_and_their_indices(values, feature, names, tmp_path, load):
    splits = load(table_folder(tmp_path / "d", {"image": PICTURES, "label": (feature, values)}))
    declared = isinstance(feature, ClassLabel)
    assert splits.label_names == names
    for split in (splits.train, splits.validation):
        assert class_in_labels(splits, split) == [names[v] if declared else str(v) for v in values]


# Columns as (type, values). PICTURES and the classes 0, 1, 0, 1 are to be found; NOT_THESE and ONLY_X are not.
PICTURES, NOT_THESE, ONLY_X = (IMAGE, images(4)), (IMAGE, images(9)[5:]), (CLASS, [0] * 4)
BYTES = (Value("binary"), [row["bytes"] for row in images(4)])
PAIRS = ({"bytes": Value("binary"), "path": Value("string")}, images(4))
DECLARED, WORDS, NUMBERS = (CLASS, [0, 1] * 2), (Value("string"), XY * 2), (Value("int64"), [0, 1] * 2)
WEIGHT, NOTE = (Value("float32"), [0.5] * 4), (Value("string"), ["a note"] * 4)


def table_folder(folder: Path, columns: dict[str, tuple]) -> Path:
    content = {name: values for name, (_, values) in columns.items()}
    return parquet(folder, content, Features({name: feature for name, (feature, _) in columns.items()}))


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"foto": PICTURES, "soort": DECLARED}, {}),
        ({"note": NOTE, "weight": WEIGHT, "scan": PICTURES, "soort": DECLARED}, {}),
        ({"img": BYTES, "category": WORDS}, {}),
        ({"image": PAIRS, "label": WORDS}, {}),
        ({"thumbnail": NOT_THESE, "image": PICTURES, "side": ONLY_X, "label": DECLARED}, {}),
        ({"a": PICTURES, "b": NOT_THESE, "soort": DECLARED}, {"image_column": "a"}),
        ({"image": NOT_THESE, "b": PICTURES, "label": WORDS}, {"image_column": "b"}),
        ({"scan": PICTURES, "p": ONLY_X, "q": DECLARED}, {"label_column": "q"}),
        ({"scan": PICTURES, "label": NOTE, "species": WORDS}, {"label_column": "species"}),
    ],
    ids=lambda value: ", ".join(value) or "by itself",
)
def test_columns_are_found_by_type_then_by_usual_name_unless_named(columns, options, tmp_path, load):
    splits = load(table_folder(tmp_path / "d", columns), **options)
    assert [splits.train.read(index) for index in range(4)] == BYTES[1]
    assert splits.label_names == XY and splits.train.labels == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"foto": PICTURES, "scan": PICTURES, "label": NUMBERS}, {}, "several columns could be the image"),
        ({"image": PICTURES, "p": DECLARED, "q": DECLARED}, {}, "several columns could be the label"),
        ({"words": NOTE, "label": NUMBERS}, {}, "no column seems to be the image"),
        ({"image": PICTURES, "weight": WEIGHT}, {}, "no column seems to be the label"),
        ({"image": PICTURES, "label": NUMBERS}, {"image_column": "foto"}, "no such column"),
        ({"image": PICTURES, "label": NUMBERS}, {"label_column": "soort"}, "no such column"),
    ],
)
def test_unclear_columns_are_refused_with_a_list_of_them(columns, options, said, tmp_path, refusal):
    message = refusal(table_folder(tmp_path / "d", columns), **options)
    assert said in message and "_column_name" in message and f"it has {', '.join(columns)}" in message


@pytest.mark.parametrize("named", ["image", "weight"])
def test_a_label_column_that_holds_no_classes_is_refused(named, tmp_path, refusal):
    folder = table_folder(tmp_path / "d", {"image": PICTURES, "label": DECLARED, "weight": WEIGHT})
    assert "not one class per row" in refusal(folder, label_column=named)


def test_an_image_column_that_holds_no_images_is_refused(tmp_path, refusal):
    refusal(table_folder(tmp_path / "d", {"image": PICTURES, "label": DECLARED}), image_column="label")


def test_class_names_declared_in_the_readme_of_a_dataset_are_kept(tmp_path, load):
    label = {"name": "label", "dtype": {"class_label": {"names": {"0": "rose", "1": "tulip"}}}}
    card = {"dataset_info": {"features": [{"name": "image", "dtype": "image"}, label]}}
    folder = write(tmp_path / "d", {"README.md": f"---\n{json.dumps(card)}\n---\n".encode()})
    (folder / "data").mkdir()
    for split in BOTH:  # as pandas writes it, without the schema of `datasets`
        table = pa.table({"image": pa.array(images(4)), "label": [0, 1, 0, 1]})
        pq.write_table(table, folder / "data" / f"{split}-00000.parquet")
    assert (
        datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "c"))["train"].features["label"].names[0] == "rose"
    )
    assert load(folder).label_names == ["rose", "tulip"]


# -- classes -----------------------------------------------------------------------------------------------


def two_tables(folder: Path, train: object, validation: object, values: dict[str, list]) -> Path:
    for split, feature in zip(BOTH, (train, validation), strict=True):
        columns = {"image": images(len(values[split])), "label": values[split]}
        parquet(folder, columns, Features(image=IMAGE, label=feature), (split,))
    return folder


def test_the_same_classes_in_another_order_are_joined_by_name(tmp_path, load):
    values = {"train": [0, 1, 2, 0], "validation": [0, 1, 2, 2]}
    names = {"train": ["p", "q", "r"], "validation": ["r", "p", "q"]}
    features = [ClassLabel(names=names[split]) for split in BOTH]
    splits = load(two_tables(tmp_path / "d", *features, values))
    assert splits.label_names == ["p", "q", "r"]
    assert splits.train.labels == [0, 1, 2, 0] and splits.validation.labels == [2, 0, 1, 1]


def test_undeclared_classes_are_joined_by_name_even_where_validation_lacks_some(tmp_path, load):
    values = {"train": ["p", "q", "r", "q"], "validation": ["r", "q"]}
    splits = load(two_tables(tmp_path / "d", Value("string"), Value("string"), values))
    assert splits.label_names == ["p", "q", "r"] and splits.validation.labels == [2, 1]


@pytest.mark.parametrize(
    ("train", "validation", "values", "differing"),
    [
        (ClassLabel(names=["p", "q"]), ClassLabel(names=["p", "r"]), [0, 1], "q, r"),
        (ClassLabel(names=["p", "q"]), ClassLabel(names=["p", "q", "r"]), [0, 1], "r"),
        (ClassLabel(names=["p", "q"]), Value("string"), ["p", "s"], "s"),
        (Value("string"), Value("string"), ["q", "s"], "s"),
    ],
)
def test_classes_that_differ_between_splits_are_refused_by_name(
    train, validation, values, differing, tmp_path, refusal
):
    rows = {"train": ["p", "q"] if train == Value("string") else [0, 1], "validation": values}
    assert f"differ in {differing};" in refusal(two_tables(tmp_path / "d", train, validation, rows))


def test_class_folders_that_differ_between_splits_are_refused_by_name(tmp_path, refusal):
    files = class_folders("train/", classes="ab") | class_folders("val/", classes="ac")
    assert "differ in b, c;" in refusal(write(tmp_path / "d", files))


def test_names_that_a_table_stores_in_two_forms_are_one_class(tmp_path, load):
    values = ["caf\u00e9", "cafe\u0301", "tea", "tea"]
    splits = load(table_folder(tmp_path / "d", {"image": PICTURES, "label": (Value("string"), values)}))
    assert splits.label_names == ["caf\u00e9", "tea"] and splits.train.labels == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        ([0, None, 1, None], ClassLabel(names=XY)),
        ([0, -1, 1, -1], ClassLabel(names=XY)),
        ([0, -1, 1, -1], Value("int64")),
        (["x", None, "y", None], Value("string")),
        (["x", "", "y", ""], Value("string")),
    ],
)
def test_rows_without_a_label_are_counted_and_refused(values, feature, tmp_path, refusal):
    message = refusal(table_folder(tmp_path / "d", {"image": PICTURES, "label": (feature, values)}))
    assert "2 of 4 rows have no value in 'label'" in message


def test_a_row_without_an_image_is_refused(tmp_path, load):
    folder = table_folder(tmp_path / "d", {"image": (IMAGE, [*images(3), None]), "label": DECLARED})
    with pytest.raises(DataError):
        check_images(load(folder), skip_bad=False, cache_dir=str(tmp_path / "cache"))


def test_two_classes_of_the_same_name_are_refused(tmp_path, refusal):
    folder = table_folder(tmp_path / "d", {"image": PICTURES, "label": (ClassLabel(names=["xx", "yy"]), [0, 1] * 2)})
    for file in (folder / "data").iterdir():  # `datasets` does not write such a file, but others do
        table = pq.read_table(file)
        schema = {b"huggingface": table.schema.metadata[b"huggingface"].replace(b"yy", b"xx")}
        pq.write_table(table.replace_schema_metadata(schema), file)
    assert "duplicated" in refusal(folder)


@pytest.mark.parametrize(("values", "only"), [([1] * 4, "y"), ([0] * 4, "x")])
def test_training_images_of_one_class_are_refused(values, only, tmp_path, refusal):
    folder = table_folder(tmp_path / "d", {"image": PICTURES, "label": (CLASS, values)})
    assert f"every training image is '{only}'" in refusal(folder)


def test_class_folders_of_one_class_are_refused(tmp_path, refusal):
    folder = write(tmp_path / "d", class_folders("train/", "val/", classes="a"))
    assert "every training image is 'a'" in refusal(folder)


@pytest.mark.parametrize("empty", BOTH)
def test_an_empty_split_is_refused(empty, tmp_path, refusal):
    values = {split: [] if split == empty else [0, 1] for split in BOTH}
    message = refusal(two_tables(tmp_path / "d", CLASS, CLASS, values))
    assert "no data" in message or "is empty" in message


def test_a_subset_of_no_images_is_refused(tmp_path, refusal):
    folder = write(tmp_path / "d", class_folders("train/", "val/"))
    assert "the train split is empty" in refusal(folder, max_train_samples=0)
    assert "the validation split is empty" in refusal(folder, max_eval_samples=0)


# -- names and folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "dataset", "said"),
    [
        ({}, "nowhere", "there is no such folder"),
        ({"d/images.csv": b"a,b"}, "d/images.csv", "is a file; name the folder"),
        ({"d/sub/.keep": b""}, "d/sub/nothing", "there is no such folder"),
        ({"d/a.py": b"print()"}, "d", "cannot be read"),
        ({"d/readme.txt": b"words"}, "d", "no column seems to be the image"),
        ({"d/data/train-0.parquet": b"PAR1 broken PAR1"}, "d", "cannot be read"),
        ({f"d/{name}": data for name, data in class_folders("test/").items()}, "d", "has no train split; it has test"),
    ],
    ids=["missing", "a file", "missing below", "no data", "text", "broken parquet", "no train"],
)
def test_a_folder_that_cannot_be_used_is_refused(files, dataset, said, tmp_path, refusal):
    message = refusal(write(tmp_path, files) / dataset)
    assert said in message and str(tmp_path / dataset) in message


def test_an_empty_folder_is_refused(tmp_path, refusal):
    (tmp_path / "d/train/a").mkdir(parents=True)
    assert "holds no files" in refusal(tmp_path / "d")


@pytest.mark.parametrize("name", ["./nowhere", "~/nowhere", "some/where/else", "nowhere/"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(name, refusal):
    assert "there is no such folder" in refusal(name)


def test_an_unknown_built_in_dataset_is_refused_with_the_known_one(refusal):
    assert "builtin:leaves" in refusal("builtin:flowers")


@pytest.mark.parametrize("name", ["someone/pictures", "pictures"])
def test_a_hub_name_that_is_not_cached_is_refused_offline_with_a_way_out(name, refusal):
    message = refusal(name, offline=True)
    assert "name a local folder" in message and "--preset leaves" in message


def test_a_hub_name_that_is_cached_loads_offline(tmp_path, load):
    repository, commit = tmp_path / "cache/datasets--someone--pictures", "0" * 40
    table_folder(repository / "snapshots" / commit, {"image": PICTURES, "label": WORDS})
    write(repository, {"refs/main": commit.encode()})
    splits = load("someone/pictures", offline=True)
    assert splits.dataset == "someone/pictures" and len(splits.train) == 4


def test_a_configuration_is_chosen_by_name_or_asked_for(tmp_path, load, refusal):
    split = "  data_files:\n  - split: train\n    path: {0}/data/train-*\n"
    card = "---\nconfigs:\n" + "".join(f"- config_name: {c}\n{split.format(c)}" for c in ("one", "two")) + "---\n"
    folder = write(tmp_path / "d", {"README.md": card.encode()})
    for name in ("one", "two"):
        columns = {"image": images(4), "label": [name, "z"] * 2}
        parquet(folder / name, columns, Features(image=IMAGE, label=Value("string")), ("train",))
    assert load(folder, config_name="two").label_names == ["two", "z"]
    assert "['one', 'two']" in refusal(folder)
    assert "three" in refusal(folder, config_name="three")


def test_an_image_outside_the_class_folders_founds_no_class(tmp_path, load):
    folder = write(tmp_path / "d", class_folders("train/") | {"train/stray.png": png(99)})
    try:
        assert load(folder).label_names == ["a", "b"]
    except DataError as error:
        assert "stray.png" in str(error)  # to refuse it would do as well


def test_a_test_split_without_class_folders_does_not_stop_training(tmp_path, load):
    files = class_folders("train/", "val/") | {f"test/{number}.png": png(number) for number in range(3)}
    splits = load(write(tmp_path / "d", files))
    assert splits.label_names == ["a", "b"] and splits.notes == ["left out: .png: 3 files in test: in no split"]


# -- subsets, reading, identity ----------------------------------------------------------------------------


def test_a_subset_is_random_but_seeded(tmp_path, load):
    folder = write(tmp_path / "d", class_folders("train/", "val/", count=20))
    few = {"max_train_samples": 10, "max_eval_samples": 7}
    splits, again, other = (load(folder, seed=seed, **few) for seed in (1, 1, 2))
    assert (len(splits.train), len(splits.validation)) == (10, 7)
    assert splits.fingerprint() == again.fingerprint() != other.fingerprint()
    assert set(splits.train.labels) == {0, 1}  # the first ten are all of one class
    for split in (splits.train, splits.validation):
        names = [split.image_name(index) for index in range(len(split))]
        assert names == sorted(set(names))  # the order is still the split's
        assert class_in_path(split) == class_in_labels(splits, split)


def test_a_subset_larger_than_the_split_is_the_split(tmp_path, load):
    folder = write(tmp_path / "d", class_folders("train/", "val/"))
    assert load(folder, max_train_samples=99, max_eval_samples=8).fingerprint() == load(folder).fingerprint()


def test_an_image_without_a_path_is_named_by_split_and_row(tmp_path, load):
    splits = load(table_folder(tmp_path / "d", {"image": BYTES, "label": WORDS}))
    assert (splits.train.image_name(2), splits.validation.image_name(0)) == ("train row 2", "validation row 0")


def test_an_image_that_has_vanished_is_named(tmp_path, load):
    splits = load(write(tmp_path / "d", class_folders("train/", "val/")))
    path = Path(splits.train.image_name(3))
    path.unlink()
    with pytest.raises(DataError, match=f"{path}: cannot be read"):
        splits.train.read(3)
    with pytest.raises(DataError, match=f"1 of 16 images cannot be used.*{path}: cannot be read"):
        check_images(splits, skip_bad=False, cache_dir=str(tmp_path / "cache"))
    assert len(check_images(splits, skip_bad=True, cache_dir=str(tmp_path / "cache")).train) == 7


def test_a_copy_elsewhere_has_the_same_fingerprint(tmp_path, load):
    folder = write(tmp_path / "d", class_folders("train/", "val/"))
    shutil.copytree(folder, tmp_path / "elsewhere/copy")
    assert load(folder).fingerprint() == load(tmp_path / "elsewhere/copy").fingerprint()


def test_any_change_to_the_data_changes_the_fingerprint(tmp_path, load):
    pictures, values = images(4), [0, 1, 0, 1]
    edited = [{"bytes": png(77), "path": "0.png"}, *pictures[1:]]
    renamed = [{"bytes": png(0), "path": "zero.png"}, *pictures[1:]]
    variants = {
        "as it is": (pictures, values, CLASS),
        "a label": (pictures, [1, 1, 0, 1], CLASS),
        "an image": (edited, values, CLASS),
        "a name": (renamed, values, CLASS),
        "the order": (pictures[::-1], values[::-1], CLASS),
        "one image less": (pictures[:3], values[:3], CLASS),
        "a class name": (pictures, values, ClassLabel(names=["x", "z"])),
    }
    prints = {}
    for name, (rows, classes, feature) in variants.items():
        folder = table_folder(tmp_path / name, {"image": (IMAGE, rows), "label": (feature, classes)})
        prints[name] = load(folder).fingerprint()
    assert len(set(prints.values())) == len(variants), prints


def test_an_image_that_moves_between_the_splits_changes_the_fingerprint(tmp_path, load):
    folder = write(tmp_path / "d", class_folders("train/", "val/"))
    before = load(folder).fingerprint()
    (folder / "train/b/3.png").rename(folder / "val/a/4.png")
    assert load(folder).fingerprint() != before
