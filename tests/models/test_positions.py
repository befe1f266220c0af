"""--image_size: position embeddings interpolated once, as transformers would in every forward pass."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageClassification

from models.family import FAMILIES
from models.loading import load_model
from models.saving import read_weights
from tests.checkpoints import NAMES, processor_of, small_checkpoint
from tests.models.test_family import as_image, change_json, ours, pictures, processor_from, refusal, saved, theirs


@torch.no_grad()
def interpolated_by_transformers(folder, family: str, side: int) -> torch.Tensor:
    """Of a folder whose processor makes 32 pixels."""
    network = AutoModelForImageClassification.from_pretrained(folder).eval()
    option = {} if family.startswith("dinov2") else {"interpolate_pos_encoding": True}
    processor = processor_of(family, side)
    # The same part of each image: 40 pixels before the crop to 32 are 60 before a crop to 48.
    larger = round(40 * side / 32)
    size = {"shortest_edge": larger} if family.startswith("dinov2") else {"height": larger, "width": larger}
    if family != "vit":
        processor.size = type(processor.size)(**size)
    images = [processor(as_image(image), return_tensors="pt") for image in pictures()]
    return torch.cat([network(**image, **option).logits for image in images])


@pytest.mark.parametrize("side", [16, 48])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_at_another_size_are_transformers_own_and_survive_saving(family, side, tmp_path):
    folder = small_checkpoint(family, tmp_path / "checkpoint")
    loaded = load_model(str(folder), NAMES, image_size=side)
    assert loaded.notes == [f"position embeddings interpolated from 32 to {side} pixels"]
    found = ours(loaded.model)
    assert torch.equal(found, interpolated_by_transformers(folder, family, side))
    out = saved(loaded.model, tmp_path / "out")
    assert AutoConfig.from_pretrained(out).image_size == side
    assert processor_from(out)(as_image(pictures()[2]), return_tensors="pt").pixel_values.shape == (1, 3, side, side)
    assert torch.equal(theirs(out), found)  # nothing is left to interpolate
    for again in (load_model(str(out), NAMES), load_model(str(out), NAMES, image_size=side)):
        assert again.notes == [] and torch.equal(ours(again.model), found)
    assert read_weights(loaded.model, out).keys() == loaded.model.state_dict().keys()


def test_a_new_head_is_the_same_draw_at_every_size(tmp_path):
    folder = small_checkpoint("vit", tmp_path / "checkpoint")
    heads = []
    for side in (None, 48):
        torch.manual_seed(1)
        loaded = load_model(str(folder), ["x", "y"], image_size=side)
        heads.append(loaded.model.vit.classifier.weight)
    assert torch.equal(*heads) and len(loaded.notes) == 2


def test_the_size_that_a_checkpoint_has_changes_nothing(tmp_path):
    folder = small_checkpoint("deit", tmp_path / "checkpoint")
    loaded = load_model(str(folder), NAMES, image_size=32)
    assert loaded.notes == [] and torch.equal(ours(loaded.model), theirs(folder))


@pytest.mark.parametrize("side", [32, 48, 64])
def test_a_dinov2_can_be_given_the_size_it_is_stored_for_or_any_other(side, tmp_path):
    """On the Hub: stored for 518 pixels, with a processor that makes 224."""
    folder = small_checkpoint("dinov2", tmp_path / "checkpoint", image_size=48)
    loaded = load_model(str(folder), NAMES, image_size=side)
    assert loaded.notes == [f"position embeddings interpolated from 48 to {side} pixels"] * (side != 48)
    assert loaded.model.preprocessing.height == loaded.model.vit.config.image_size == side
    assert torch.equal(ours(loaded.model), interpolated_by_transformers(folder, "dinov2", side))


def test_a_real_checkpoint_at_384_pixels(deit_tiny, tmp_path):
    names = list(AutoConfig.from_pretrained(deit_tiny).id2label.values())
    loaded = load_model(str(deit_tiny), names, image_size=384)
    assert loaded.notes == ["position embeddings interpolated from 224 to 384 pixels"]
    out = saved(loaded.model, tmp_path / "out")
    pixels = processor_from(out)(list(map(as_image, pictures()[:2])), return_tensors="pt").pixel_values
    network = AutoModelForImageClassification.from_pretrained(deit_tiny).eval()
    with torch.no_grad():
        expected = network(pixels, interpolate_pos_encoding=True).logits
        assert torch.equal(loaded.model.eval().vit(pixels).logits, expected)
        assert torch.equal(AutoModelForImageClassification.from_pretrained(out).eval()(pixels).logits, expected)


def test_a_built_in_model_is_built_at_that_size():
    loaded = load_model("builtin:tiny", NAMES, image_size=48)
    assert loaded.notes == ["from scratch"] and loaded.model.processor["size"] == {"height": 48, "width": 48}
    assert loaded.model.vit.vit.embeddings.position_embeddings.shape == (1, 37, 32)
    assert loaded.model(torch.zeros(1, 3, 48, 48, dtype=torch.uint8)).shape == (1, 3)


@pytest.mark.parametrize(
    ("side", "why"),
    [
        (36, "--image_size 36: must be a multiple of the patch size 8, such as 32 or 40"),
        (3, "--image_size 3: must be a multiple of the patch size 8, such as 8"),
        (8200, "--image_size 8200: can be at most 8192 pixels"),
    ],
)
@pytest.mark.parametrize("model", ["builtin:tiny", *FAMILIES])
def test_a_size_that_cannot_be_made_is_refused(side, why, model, tmp_path):
    if model in FAMILIES:
        model = str(small_checkpoint(model, tmp_path / "checkpoint"))
    assert refusal(model, image_size=side) == why


def test_what_is_not_square_keeps_its_size(tmp_path):
    folder = small_checkpoint("vit", tmp_path / "wide", image_size=[16, 32])
    change_json(folder / "preprocessor_config.json", size={"height": 16, "width": 32})
    assert load_model(str(folder), NAMES).notes == []
    assert "takes 16 x 32 pixels in patches of 8 x 8; only square ones" in refusal(folder, image_size=64)
    folder = small_checkpoint("vit", tmp_path / "flat", patch_size=[4, 8])
    assert "in patches of 4 x 8; only square ones" in refusal(folder, image_size=64)
    folder = small_checkpoint("dinov2", tmp_path / "dino", image_size=48)
    change_json(folder / "preprocessor_config.json", crop_size={"height": 16, "width": 32})
    assert "makes 16 x 32 pixels, config.json says image_size 48" in refusal(folder)


def test_a_size_is_saved_in_the_way_the_processor_states_it(tmp_path):
    folder = small_checkpoint("deit", tmp_path / "deit")
    processor = load_model(str(folder), NAMES, image_size=64).model.processor
    assert processor["size"] == {"height": 80, "width": 80} and processor["crop_size"] == {"height": 64, "width": 64}
    change_json(folder / "preprocessor_config.json", size=40, crop_size=32)  # as older files have it
    assert load_model(str(folder), NAMES, image_size=64).model.processor == processor
    folder = small_checkpoint("dinov2", tmp_path / "dino")
    processor = load_model(str(folder), NAMES, image_size=16).model.processor
    assert processor["size"] == {"shortest_edge": 20}
    assert json.loads((folder / "preprocessor_config.json").read_text())["size"] == {"shortest_edge": 40}
