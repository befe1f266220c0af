from collections import Counter

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from data.reading import leaves
from data.reading.decode import decode
from data.seeds import derive_seed


def test_a_leaf_is_a_function_of_seed_split_and_index():
    first = leaves.png(7, "train", 4)
    assert first == leaves.png(7, "train", 4)
    others = [leaves.png(8, "train", 4), leaves.png(7, "validation", 4), leaves.png(7, "train", 7)]
    assert len({first, *others}) == 4


def test_a_table_holds_those_leaves_whatever_its_length():
    short, long = leaves.table("validation", 3, 4), leaves.table("validation", 3, 9)
    images = [row["bytes"] for row in long.cast_column("image", datasets.Image(decode=False))["image"]]
    assert images == [leaves.png(3, "validation", index) for index in range(9)]
    assert [row["bytes"] for row in short.cast_column("image", datasets.Image(decode=False))["image"]] == images[:4]


def test_columns_and_class_names_are_those_of_beans(beans):
    file = next((beans / "data").glob("validation-*"))
    assert leaves.table("train", 0, 3).features == datasets.Features.from_arrow_schema(pq.read_schema(file))


@pytest.mark.parametrize("most", [1, 2, 3, 10, 31])
def test_the_first_images_are_balanced(most):
    counts = Counter(leaves.table("train", 0, most)["labels"])
    assert sum(counts.values()) == most
    assert max(counts.values()) - min(counts[label] for label in range(3)) <= 1


def test_a_leaf_is_a_square_rgb_picture_named_by_its_class():
    table = leaves.table("train", 0, 3).cast_column("image", datasets.Image(decode=False))
    for row, name in zip(table, leaves.LABEL_NAMES, strict=True):
        assert decode(row["image"]["bytes"], "leaf").shape == (3, leaves.SIDE, leaves.SIDE)
        assert leaves.LABEL_NAMES[row["labels"]] == name and f"/{name}/" in row["image_file_path"]


def mean_colours(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    pictures = [
        leaves.draw_leaf(leaves.LABEL_NAMES[i % 3], np.random.default_rng(derive_seed(0, "leaf", split, i)))
        for i in range(count)
    ]
    colours = torch.tensor(np.stack([np.asarray(p).mean((0, 1)) for p in pictures]), dtype=torch.float64)
    return colours, torch.arange(count) % 3


def test_mean_colour_alone_does_not_tell_the_classes_apart():
    x, y = mean_colours("train", 600)
    test_x, test_y = mean_colours("validation", 150)
    mean, std = x.mean(0), x.std(0)
    weight, bias = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    optimizer = torch.optim.LBFGS([weight.requires_grad_(), bias.requires_grad_()], max_iter=200)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy((x - mean) / std @ weight + bias, y)
        value.backward()
        return value

    optimizer.step(loss)
    accuracy = (((test_x - mean) / std @ weight + bias).argmax(1) == test_y).double().mean().item()
    assert accuracy < 0.80, accuracy  # a shape has to be seen
