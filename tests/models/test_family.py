"""Every family gives what transformers gives, and takes a new head."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
from transformers import DeiTForImageClassificationWithTeacher as WithTeacher

from data.reading.decode import Resize
from models import ModelError
from models.classifier import Classifier
from models.family import FAMILIES, HEAD
from models.loading import load_model
from models.saving import read_weights, save_model
from tests.checkpoints import NAMES, processor_of, random_network, small_checkpoint, small_config

SIZES = [(32, 32), (40, 57), (100, 37), (33, 90)]  # height, width


def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def seen_by(model: Classifier, image: np.ndarray) -> torch.Tensor:
    """The image as the model is given it, uint8 [1, 3, h, w]."""
    wanted = model.preprocessing
    resize = Resize(wanted.height, wanted.width, wanted.interpolation, wanted.before_crop)
    return resize(torch.from_numpy(image).permute(2, 0, 1))[None]


@torch.no_grad()
def ours(model: Classifier) -> torch.Tensor:
    return torch.cat([model.eval()(seen_by(model, image)) for image in pictures()])


@torch.no_grad()
def theirs(folder, **options) -> torch.Tensor:
    """By transformers' own classes alone."""
    network, processor = AutoModelForImageClassification.from_pretrained(folder).eval(), processor_from(folder)
    return torch.cat(
        [network(**processor(image, return_tensors="pt"), **options).logits for image in map(as_image, pictures())]
    )


def processor_from(folder):
    return AutoImageProcessor.from_pretrained(folder)


def as_image(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array)


def saved(model: Classifier, folder):
    folder.mkdir()
    save_model(model, folder, model.state_dict())
    return folder


def refusal(folder, names=NAMES, **options) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), names, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_json(file, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def folder(family, tmp_path):
    return small_checkpoint(family, tmp_path / "checkpoint")


def test_logits_are_transformers_own_to_the_bit_before_and_after_saving(folder, tmp_path):
    loaded = load_model(str(folder), NAMES)
    assert not loaded.new_head and loaded.notes == []
    assert torch.equal(ours(loaded.model), theirs(folder))
    out = saved(loaded.model, tmp_path / "out")
    assert torch.equal(theirs(out), theirs(folder))
    assert (
        json.loads((out / "config.json").read_text())["model_type"]
        == json.loads((folder / "config.json").read_text())["model_type"]
    )


def test_the_pipeline_on_a_saved_folder_predicts_what_is_evaluated_here(folder, tmp_path):
    model = load_model(str(folder), NAMES[::-1]).model
    classify = pipeline("image-classification", model=str(saved(model, tmp_path / "out")))
    for image, logits in zip(pictures(), ours(model), strict=True):
        found = {item["label"]: item["score"] for item in classify(as_image(image), top_k=3)}
        assert found == pytest.approx(dict(zip(NAMES[::-1], logits.softmax(-1).tolist(), strict=True)), abs=1e-6)


def test_a_head_is_joined_by_the_names_of_the_classes(folder):
    other = load_model(str(folder), ["daisy", "rose", "tulip"])
    assert not other.new_head and other.notes == ["the head's classes reordered by name"]
    torch.testing.assert_close(ours(other.model), theirs(folder)[:, [2, 0, 1]])


@pytest.mark.parametrize("names", [["x", "y"], ["x", "y", "z"]], ids=["fewer", "as many"])
def test_other_classes_get_a_new_head_and_keep_everything_else(names, folder):
    loaded, before = load_model(str(folder), names), load_model(str(folder), NAMES).model.state_dict()
    assert loaded.new_head and loaded.notes == [f"new head for {len(names)} classes"]
    after = loaded.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed == {f"vit.{name}" for name in HEAD}
    assert loaded.model.vit.classifier.bias.tolist() == [0] * len(names)
    assert loaded.model.vit.classifier.weight.std().item() == pytest.approx(0.02, rel=0.3)


def test_weights_come_back_to_the_bit(family, folder, tmp_path):
    model = load_model(str(folder), NAMES).model
    random_network(model)
    other = load_model(str(folder), NAMES).model
    other.load_state_dict(read_weights(other, saved(model, tmp_path / "out")))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


def test_the_blocks_are_found_and_every_trained_weight_gets_a_gradient(folder):
    """DDP waits for a gradient of each, and DINOv2 has a token that only pretraining uses."""
    model = load_model(str(folder), NAMES).model
    assert [type(block).__name__.endswith("Layer") for block in model.blocks] == [True, True]
    model(seen_by(model, pictures()[0])).logsumexp(-1).sum().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None for parameter in trained.values())
    assert {name for name, _ in model.named_parameters()} - trained.keys() <= {
        f"{prefix}.embeddings.mask_token" for prefix in ("vit.dinov2", "vit.dinov2_with_registers")
    }


def test_a_backbone_without_a_head_is_fine_tuned(family, folder, tmp_path):
    network = random_network(AutoModel.from_config(small_config(family)))
    network.save_pretrained(tmp_path / "backbone")
    processor_of(family).save_pretrained(tmp_path / "backbone")
    loaded = load_model(str(tmp_path / "backbone"), ["x", "y"])
    pooler = ["the checkpoint's pooler is not used"] if network.state_dict().keys() & {"pooler.dense.weight"} else []
    assert loaded.new_head and sorted(loaded.notes) == sorted([*pooler, "new head for 2 classes"])
    mine = loaded.model.vit.base_model.state_dict()
    assert mine and all(torch.equal(value, network.state_dict()[name]) for name, value in mine.items())


def test_of_a_distilled_deit_the_two_heads_give_way_to_a_new_one(tmp_path):
    random_network(WithTeacher(small_config("deit"))).save_pretrained(tmp_path / "distilled")
    processor_of("deit").save_pretrained(tmp_path / "distilled")
    loaded = load_model(str(tmp_path / "distilled"), ["x", "y"])
    dropped = [f"the checkpoint's {name} is not used" for name in ("cls_classifier", "distillation_classifier")]
    assert loaded.notes == [*dropped, "new head for 2 classes"]
    assert "classifier.bias" in refusal(tmp_path / "distilled")  # of its own classes it has no single head


@pytest.mark.parametrize("stored", [24, 48])
@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers"])
def test_a_dinov2_stored_for_another_size_than_its_processor_makes_gives_the_same_logits(family, stored, tmp_path):
    """Its network interpolates in every forward pass; here that is done once, for 518 and 224 pixels on the Hub."""
    folder = small_checkpoint(family, tmp_path / "checkpoint", image_size=stored)
    loaded = load_model(str(folder), NAMES)
    assert loaded.notes == [f"position embeddings interpolated from {stored} to 32 pixels"]
    assert torch.equal(ours(loaded.model), theirs(folder))
    out = saved(loaded.model, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["image_size"] == 32
    assert torch.equal(theirs(out), theirs(folder)) and load_model(str(out), NAMES).notes == []


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_another_size_than_the_processor_makes_is_refused_where_the_network_would(family, tmp_path):
    folder = small_checkpoint(family, tmp_path / "checkpoint", image_size=48)
    assert "makes 32 x 32 pixels, config.json says image_size 48" in refusal(folder)


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2"])  # for the fourth, transformers knows none
def test_a_processor_without_a_name_is_the_one_that_transformers_takes(folder, tmp_path):
    file = folder / "preprocessor_config.json"
    content = json.loads(file.read_text())
    del content["image_processor_type"]
    file.write_text(
        json.dumps(content | {"size": next(iter(content["size"].values()))})
    )  # one number, as in older files
    assert torch.equal(ours(load_model(str(folder), NAMES).model), theirs(folder))
    assert torch.equal(theirs(saved(load_model(str(folder), NAMES).model, tmp_path / "out")), theirs(folder))


def test_swiglu_registers_and_no_mask_token_are_understood(tmp_path):
    gated = small_checkpoint(
        "dinov2", tmp_path / "gated", use_swiglu_ffn=True, use_mask_token=False, drop_path_rate=0.1
    )
    assert torch.equal(ours(load_model(str(gated), NAMES).model), theirs(gated))
    seven = small_checkpoint("dinov2_with_registers", tmp_path / "seven", num_register_tokens=7)
    assert torch.equal(ours(load_model(str(seven), NAMES).model), theirs(seven))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("mlp_ratio", [0, -1, 2.5, "4", True, None, 10**6]),
        ("use_swiglu_ffn", ["true", 1, None]),
        ("use_mask_token", ["true", 1, None]),
        ("drop_path_rate", [-0.1, 1, float("nan"), "0.1", None]),
        ("layerscale_value", [-1, float("nan"), float("inf"), "1", None]),
        ("num_register_tokens", [0, 1.5, None, 10**9]),
    ],
)
def test_an_impossible_value_of_dinov2_is_refused_by_name(key, values, tmp_path):
    folder = small_checkpoint("dinov2" if key == "use_mask_token" else "dinov2_with_registers", tmp_path / "checkpoint")
    sound = (folder / "config.json").read_text()
    for value in values:
        (folder / "config.json").write_text(sound)
        change_json(folder / "config.json", **{key: value})
        assert f"config.json: {key} is " in refusal(folder)


@pytest.mark.parametrize("values", [{"mlp_ratio": 64}, {"hidden_size": 4096}, {"image_size": 8192, "patch_size": 1}])
def test_a_dinov2_far_larger_than_its_weights_is_refused(values, tmp_path):
    folder = small_checkpoint("dinov2", tmp_path / "checkpoint")
    change_json(folder / "config.json", **values)
    assert all(f"{name} {value}" in refusal(folder) for name, value in values.items())


@pytest.mark.parametrize("other", ["beit", "swin", "dinov3_vit", "vit_mae", "resnet", "", 3, None, ["vit"]])
def test_any_other_model_is_refused_with_those_that_work(other, tmp_path):
    folder = small_checkpoint("vit", tmp_path / "checkpoint")
    change_json(folder / "config.json", model_type=other)
    message = refusal(folder)
    assert message.endswith("what can be trained is vit, deit, dinov2, dinov2_with_registers")
    assert "nameless" in message if other is None else str(other) in message
