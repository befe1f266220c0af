import json
import pickle
import shutil
import time
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ViTForImageClassification, pipeline

from models import ModelError
from models.classifier import Classifier
from models.loading import load_model, names_to_evaluate
from models.preprocessing import PROCESSOR_FILE
from models.saving import read_weights, save_model

NAMES = ["rose", "tulip", "daisy"]
BODY = "vit.encoder.layer.1.intermediate.dense.weight"  # some tensor that is not of the head
HEAD = {"classifier.weight", "classifier.bias"}


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A checkpoint of 2 layers for the classes NAMES."""
    return saved(load_model("builtin:tiny", NAMES).model, tmp_path / "tiny")


def saved(model: Classifier, folder: Path) -> Path:
    folder.mkdir()
    save_model(model, folder, model.state_dict())
    return folder


def change_weights(folder: Path, change) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def change_json(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refusal(model: Path | str, names: list[str] = NAMES, **options) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(model), names, **options)
    message = str(caught.value)
    assert message.startswith(f"--model {model}: ") and "\n" not in message
    return message


def equal_states(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# -- heads -------------------------------------------------------------------------------------------------


def test_a_real_checkpoint_keeps_every_tensor_but_the_head(deit_tiny, tmp_path):
    loaded = load_model(str(deit_tiny), NAMES)
    assert loaded.new_head and loaded.notes == ["new head for 3 classes"]
    assert loaded.model.processor["image_mean"] == [0.485, 0.456, 0.406]
    saved(loaded.model, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (deit_tiny, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == HEAD
    assert after["classifier.weight"].shape == (3, 192) and after["classifier.bias"].tolist() == [0, 0, 0]
    assert after["classifier.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["id2label"] == {"0": "rose", "1": "tulip", "2": "daisy"}
    assert config["label2id"] == {"rose": 0, "tulip": 1, "daisy": 2}


def test_as_many_but_other_classes_get_a_new_head(deit_tiny):
    old = load_file(deit_tiny / "model.safetensors")["classifier.weight"]
    network = load_model(str(deit_tiny), [f"class {i}" for i in range(1000)]).model.vit
    head = network.classifier
    assert not torch.isclose(head.weight, old).all(1).any() and (head.bias == 0).all()
    assert head.weight.mean().item() == pytest.approx(0, abs=0.001)
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert head.weight.abs().max() < 0.12  # six deviations; a head of a checkpoint has outliers


@pytest.mark.parametrize(
    ("names", "new"),
    [(NAMES, False), (["x", "y", "z"], True), (NAMES[:2], True), ([*NAMES, "lily"], True)],
    ids=["same", "other names", "fewer", "more"],
)
def test_only_the_same_classes_keep_the_head(names, new, tiny):
    loaded = load_model(str(tiny), names)
    before = load_file(tiny / "model.safetensors")["classifier.weight"]
    assert loaded.new_head == new and bool(loaded.notes) == new
    assert torch.equal(loaded.model.vit.classifier.weight, before) != new
    assert loaded.model.vit.config.id2label == dict(enumerate(names))
    assert loaded.model.vit.classifier.out_features == loaded.model.vit.config.num_labels == len(names)


def answers(model: Classifier) -> dict[str, float]:
    """The logits of one picture by the name of the class, composed."""
    pixels = torch.arange(3 * 32 * 32).view(1, 3, 32, 32).remainder(251).to(torch.uint8)
    names = model.vit.config.id2label.values()
    with torch.no_grad():
        logits = model.eval()(pixels)[0].tolist()
    return {unicodedata.normalize("NFC", name): value for name, value in zip(names, logits, strict=True)}


def shuffled_head(names: list[str], folder: Path) -> Classifier:
    """A model whose classes differ in weight and bias, saved in `folder`."""
    model = load_model("builtin:tiny", names).model
    nn.init.normal_(model.vit.classifier.weight)
    nn.init.normal_(model.vit.classifier.bias)
    saved(model, folder)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (NAMES, NAMES[::-1]),
        ([str(number) for number in range(12)], sorted(str(number) for number in range(12))),
        (["caf\u00e9", "tea"], ["tea", "cafe\u0301"]),
    ],
    ids=["other order", "numbers as text", "accents decomposed"],
)
def test_the_same_classes_in_another_order_keep_their_rows_of_the_head(old, new, dtype, tmp_path):
    model = shuffled_head(old, tmp_path / "old")
    loaded = load_model(str(tmp_path / "old"), new, dtype=dtype)
    assert not loaded.new_head and loaded.notes == ["the head's classes reordered by name"]
    assert answers(loaded.model) == pytest.approx(answers(model), abs=1e-5)
    again = load_model(str(saved(loaded.model, tmp_path / "new")), new, dtype=dtype)
    assert not again.notes and equal_states(again.model, loaded.model)
    assert json.loads((tmp_path / "new/config.json").read_text())["label2id"] == {n: i for i, n in enumerate(new)}


def test_a_class_spelled_with_another_accent_keeps_its_place_and_gets_the_datas_spelling(tmp_path):
    shuffled_head(["caf\u00e9", "tea"], tmp_path / "old")
    loaded = load_model(str(tmp_path / "old"), ["cafe\u0301", "tea"])
    assert not loaded.new_head and loaded.notes == []
    assert loaded.model.vit.config.id2label == {0: "cafe\u0301", 1: "tea"}


@pytest.mark.parametrize("double", [["rose", "rose", "tulip"], ["caf\u00e9", "cafe\u0301", "tea"]])
def test_classes_that_cannot_be_told_apart_are_not_joined(double, tiny):
    change_json(tiny / "config.json", id2label=dict(enumerate(double)), label2id={})
    assert not load_model(str(tiny), double).new_head  # nothing to join: the very same list
    assert load_model(str(tiny), [double[1], double[2], "lily"]).new_head
    assert load_model(str(tiny), [double[2], "cafe\u0301", "caf\u00e9"]).new_head


def test_weights_in_another_order_are_read_by_name(tmp_path):
    model = shuffled_head(NAMES, tmp_path / "old")
    other = load_model("builtin:tiny", NAMES[::-1]).model
    other.load_state_dict(read_weights(other, tmp_path / "old"))
    assert answers(other) == pytest.approx(answers(model), abs=1e-5)


@pytest.mark.parametrize("names", [NAMES, ["x", "y"]], ids=["kept head", "new head"])
@pytest.mark.parametrize("problem", ["multi_label_classification", "regression", "single_label_classification", 7])
def test_probabilities_add_up_to_one_whatever_the_checkpoint_was_trained_for(problem, names, tiny, tmp_path):
    change_json(tiny / "config.json", problem_type=problem, num_labels=7)
    loaded = load_model(str(tiny), names)
    assert any("problem_type" in note for note in loaded.notes) == (problem != "single_label_classification")
    out = saved(loaded.model, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config.get("problem_type") in (None, "single_label_classification")
    assert config["id2label"] == {str(index): name for index, name in enumerate(names)}
    assert config["label2id"] == {name: index for index, name in enumerate(names)} and "num_labels" not in config
    found = pipeline("image-classification", model=str(out))(Image.new("RGB", (32, 32)), top_k=3)
    assert sum(item["score"] for item in found) == pytest.approx(1)


def test_twelve_classes_keep_their_order_and_their_head(tmp_path):
    names = [f"class {number}" for number in range(12)]  # as text, 10 comes before 2
    model = load_model("builtin:tiny", names).model
    loaded = load_model(str(saved(model, tmp_path / "twelve")), names)
    assert not loaded.new_head and equal_states(loaded.model, model)


@pytest.mark.parametrize("names", [["x", "y", "z"], ["x", "y"]], ids=["as many", "fewer"])
def test_a_new_head_is_a_function_of_torchs_seed(names, tiny):
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(load_model(str(tiny), names).model.vit.classifier.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("lost", sorted(HEAD))
def test_a_missing_head_is_drawn_for_other_classes_but_refused_for_the_same(lost, tiny):
    change_weights(tiny, lambda tensors: tensors.pop(lost))
    assert lost in refusal(tiny)
    head = load_model(str(tiny), ["x", "y"]).model.vit.classifier
    assert 0 < head.weight.std() < 0.04 and (head.bias == 0).all()


# -- weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [NAMES, ["x", "y"]], ids=["same classes", "other classes"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop(BODY), "vit.layers.1.mlp.fc1.weight"),
        (lambda tensors: tensors.update({BODY: torch.zeros(2, 3)}), "vit.layers.1.mlp.fc1.weight"),
        (lambda tensors: tensors.update({"vit.extra.weight": torch.zeros(2)}), "vit.extra.weight"),
    ],
    ids=["missing", "of another shape", "left over"],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, named, names, tiny):
    message = refusal(change_weights(tiny, change), names)
    assert named in message or BODY in message


@pytest.mark.parametrize("prefix", ["vit.", ""])
def test_a_pooler_left_from_pretraining_is_tolerated_and_noted(prefix, tiny):
    pooler = {f"{prefix}pooler.dense.weight": torch.ones(32, 32), f"{prefix}pooler.dense.bias": torch.ones(32)}
    loaded = load_model(str(change_weights(tiny, lambda tensors: tensors.update(pooler))), NAMES)
    assert loaded.notes == ["the checkpoint's pooler is not used"]


def test_a_float16_checkpoint_loads_as_float32(tiny):
    change_weights(tiny, lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()}))
    change_json(tiny / "config.json", dtype="float16")
    network = load_model(str(tiny), NAMES).model.vit
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    half = load_file(tiny / "model.safetensors")["classifier.weight"]
    assert torch.equal(network.classifier.weight, half.float())


class Bomb:
    """What a hostile pickle does when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("hostile", [False, True])
def test_a_checkpoint_that_is_only_a_pickle_is_refused_and_never_opened(hostile, tiny, tmp_path):
    tensors, mark = load_file(tiny / "model.safetensors"), tmp_path / "mark"
    (tiny / "model.safetensors").unlink()
    if hostile:
        (tiny / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save(tensors, tiny / "pytorch_model.bin")
    assert "model.safetensors" in refusal(tiny) and not mark.exists()


def test_weights_cut_short_are_refused(tiny):
    file = tiny / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "cannot be loaded" in refusal(tiny)


# -- configuration -----------------------------------------------------------------------------------------


def test_a_model_that_is_no_vit_is_refused(tiny):
    change_json(tiny / "config.json", model_type="bert")
    assert "is a bert model; what can be trained is vit, " in refusal(tiny)


def test_a_vit_for_grey_images_is_refused(tiny):
    patches = "vit.embeddings.patch_embeddings.projection.weight"
    change_weights(tiny, lambda tensors: tensors.update({patches: tensors[patches][:, :1].clone()}))
    change_json(tiny / "config.json", num_channels=1)
    assert "wants 1 channels" in refusal(tiny)


def test_a_checkpoint_without_a_processor_file_is_refused(tiny):
    (tiny / PROCESSOR_FILE).unlink()
    assert PROCESSOR_FILE in refusal(tiny)


@pytest.mark.parametrize("size", [{"height": 64, "width": 64}, {"height": 32, "width": 64}, 64])
def test_a_processor_for_another_size_than_the_models_is_refused(size, tiny):
    change_json(tiny / PROCESSOR_FILE, size=size)
    message = refusal(tiny)
    assert PROCESSOR_FILE in message and "image_size 32" in message


@pytest.mark.parametrize("size", [{"height": 32, "width": 32}, 32])
def test_a_processor_for_the_models_size_is_handed_on(size, tiny):
    change_json(tiny / PROCESSOR_FILE, size=size, image_mean=[0.1, 0.2, 0.3])
    processor = load_model(str(tiny), NAMES).model.processor
    assert processor["size"] == size and processor["image_mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("file", ["config.json", PROCESSOR_FILE])
@pytest.mark.parametrize("text", ["", "{", '{"model_type": '])
def test_a_file_that_is_no_json_is_refused(file, text, tiny):
    (tiny / file).write_text(text)
    refusal(tiny)


@pytest.mark.parametrize("file", ["config.json", PROCESSOR_FILE])
def test_json_of_another_shape_than_expected_is_refused_or_understood(file, tiny):
    if file == "config.json":
        change_json(tiny / file, id2label=None)
        assert load_model(str(tiny), NAMES).new_head
    else:
        (tiny / file).write_text("[]")
        refusal(tiny)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"vit"', '["configuration_files"]'])
def test_a_configuration_that_is_no_object_is_refused(text, tiny):
    (tiny / "config.json").write_text(text)
    assert "config.json" in refusal(tiny)


NO_COUNT = [0, -1, 1.5, "32", True, None, [], {}, float("nan"), float("inf"), 10**9, 10**12, 10**400]
NO_RATE = [-0.1, 1, 7, float("nan"), float("inf"), -float("inf"), "0.1", True, None, [0.1], 10**400]


@pytest.mark.parametrize("names", [NAMES, ["x", "y"]], ids=["same classes", "other classes"])
@pytest.mark.parametrize(
    ("key", "values"),
    [
        *((key, NO_COUNT) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")),
        *((key, NO_COUNT) for key in ("image_size", "patch_size", "num_channels")),
        *((key, [[32], [32, 32, 32], [32, 0], [32, "32"], [10**9, 1]]) for key in ("image_size", "patch_size")),
        *((key, NO_RATE) for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps")),
        ("initializer_range", [-1, float("nan"), float("inf"), "0.02", None, True]),
        ("hidden_act", ["no_such", "xielu", "os.system", "torch.nn.GELU", "", 3, None, ["gelu"], {"gelu": 1}]),
        ("qkv_bias", ["true", 1, None]),
        ("num_attention_heads", [3, 64]),
        ("patch_size", [33, [8, 64]]),
        ("quantization_config", [{"quant_method": "bitsandbytes", "load_in_8bit": True}]),
    ],
)
def test_an_impossible_value_is_refused_by_name_before_anything_is_allocated(key, values, names, tiny):
    sound = (tiny / "config.json").read_text()
    for value in values:
        (tiny / "config.json").write_text(sound)
        change_json(tiny / "config.json", **{key: value})
        started = time.perf_counter()
        message = refusal(tiny, names)
        assert "config.json" in message and key in message, message
        assert len(message) < 600 + len(str(tiny)) and time.perf_counter() - started < 1


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 400},
        {"hidden_size": 8192},
        {"intermediate_size": 65536},
        {"image_size": 8192, "patch_size": 1},
        {"hidden_size": 16384, "intermediate_size": 131072, "num_hidden_layers": 512},
    ],
)
def test_a_network_far_larger_than_its_weights_is_refused_before_it_is_built(values, tiny):
    change_json(tiny / "config.json", **values)
    started = time.perf_counter()
    message = refusal(tiny, ["x", "y"])
    assert all(f"{name} {value}" in message for name, value in values.items()) and time.perf_counter() - started < 1


@pytest.mark.parametrize(
    "id2label",
    [
        {"zero": "rose", "1": "tulip", "2": "daisy"},
        {"0": "rose", "2": "tulip", "3": "daisy"},
        {"1": "rose", "2": "tulip", "3": "daisy"},
        {"0": "rose", "00": "tulip", "1": "daisy"},
        {"0": "rose", "1": "tulip", "1.0": "daisy"},
        {"-1": "rose", "0": "tulip", "1": "daisy"},
        {"0": "rose", "1": "tulip", "2": None},
        {"0": "rose", "1": "tulip", "2": ["daisy"]},
        ["rose", "tulip", "daisy"],
        "rose",
        3,
    ],
)
def test_classes_whose_indices_or_names_are_no_list_are_refused(id2label, tiny):
    change_json(tiny / "config.json", id2label=id2label)
    assert "config.json: id2label" in refusal(tiny)
    assert "config.json: id2label" in refusal(tiny, ["x", "y"])


def test_numbers_as_names_of_classes_are_text(tiny):
    change_json(tiny / "config.json", id2label={"0": 10, "1": 11, "2": 12})
    assert not load_model(str(tiny), ["12", "10", "11"]).new_head


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("return_dict", False),
        ("use_return_dict", False),
        ("torchscript", True),
        ("output_attentions", True),
        ("output_hidden_states", True),
        ("attn_implementation", "flash_attention_2"),
        ("auto_map", {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}),
        ("trust_remote_code", True),
    ],
)
def test_what_would_change_the_output_or_run_code_is_neither_done_nor_passed_on(key, value, tiny, tmp_path):
    (tiny / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    before = answers(load_model(str(tiny), NAMES).model)
    change_json(tiny / "config.json", **{key: value})
    change_json(tiny / PROCESSOR_FILE, auto_map={"AutoImageProcessor": "evil.Processor"})
    loaded = load_model(str(tiny), NAMES)
    assert answers(loaded.model) == before
    assert key.startswith(("use_", "attn")) or any(key in note for note in loaded.notes)
    out = saved(loaded.model, tmp_path / "out")
    written = json.loads((out / "config.json").read_text())
    assert written.get(key) != value and "auto_map" not in (out / PROCESSOR_FILE).read_text()
    assert not (tmp_path / "mark").exists()


# -- classes of an evaluation ------------------------------------------------------------------------------


def test_an_evaluation_keeps_every_class_and_puts_the_datas_first(tmp_path):
    model = shuffled_head(["a", "b", "b", "caf\u00e9", "d"], tmp_path / "old")
    names = names_to_evaluate(str(tmp_path / "old"), ["d", "cafe\u0301"])
    assert names == ["d", "cafe\u0301", "a", "b", "b"]
    loaded = load_model(str(tmp_path / "old"), names)
    assert not loaded.new_head and answers(loaded.model) == pytest.approx(answers(model), abs=1e-5)


@pytest.mark.parametrize(("names", "named"), [(["rose", "lily", "oak"], "lily, oak"), (["b"], "b"), (["c", "c"], "c")])
def test_a_class_that_an_evaluation_cannot_place_is_named(names, named, tmp_path):
    shuffled_head(["rose", "b", "b", "c"], tmp_path / "old")
    with pytest.raises(ModelError, match=f": {named}(;|$)"):
        names_to_evaluate(str(tmp_path / "old"), names)


def test_an_untrained_model_is_not_evaluated():
    with pytest.raises(ModelError, match="builtin:tiny is built untrained"):
        names_to_evaluate("builtin:tiny", NAMES)


# -- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere", "a/b/c"])
def test_a_missing_folder_is_refused(name):
    assert "there is no such folder" in refusal(name)


def test_a_file_or_an_empty_folder_is_refused(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is a file" in refusal(tiny / "config.json")
    assert "holds no config.json" in refusal(tmp_path / "empty")


def test_an_unknown_built_in_model_is_refused_with_the_known_ones():
    assert "builtin:small, builtin:tiny" in refusal("builtin:huge")


@pytest.mark.parametrize("name", ["google/vit-base-patch16-224-in21k", "vit"])
def test_a_hub_name_that_is_not_cached_is_refused_offline_with_a_way_out(name, tmp_path):
    message = refusal(name, cache_dir=str(tmp_path), offline=True)
    assert "name a local checkpoint folder" in message and "--preset leaves" in message


def test_a_hub_name_that_is_cached_loads_offline(tiny, tmp_path):
    repository, commit = tmp_path / "hub/models--someone--vit", "0" * 40
    shutil.copytree(tiny, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    loaded = load_model("someone/vit", NAMES, cache_dir=str(tmp_path / "hub"), offline=True)
    assert equal_states(loaded.model.vit, load_model(str(tiny), NAMES).model.vit)


# -- built in, saved, restored -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "side"), [("builtin:tiny", 32), ("builtin:small", 64)])
def test_a_built_in_model_takes_the_size_its_processor_says(name, side):
    loaded = load_model(name, NAMES)
    assert loaded.new_head and loaded.model.processor["size"] == {"height": side, "width": side}
    assert loaded.model.vit(torch.randn(2, 3, side, side)).logits.shape == (2, 3)


def test_a_saved_model_gives_the_same_logits_through_the_hubs_own_loaders(tiny):
    model = load_model(str(tiny), NAMES).model.eval()
    network = model.vit
    theirs = ViTForImageClassification.from_pretrained(tiny).eval()
    pixels = torch.randn(2, 3, 32, 32)
    assert equal_states(network, theirs) and theirs.config.id2label == dict(enumerate(NAMES))
    with torch.no_grad():
        torch.testing.assert_close(network(pixels).logits, theirs(pixels).logits, rtol=0, atol=1e-6)
        image = Image.effect_mandelbrot((32, 32), (-2, -1.5, 1, 1.5), 50).convert("RGB")
        classify = pipeline("image-classification", model=str(tiny))
        found = {item["label"]: item["score"] for item in classify(image, function_to_apply="none", top_k=3)}
        expected = network(**classify.image_processor(image, return_tensors="pt")).logits[0].tolist()
        ours = model(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])[0].tolist()
    assert found == pytest.approx(dict(zip(NAMES, expected, strict=True)), abs=1e-6)
    assert found == pytest.approx(dict(zip(NAMES, ours, strict=True)), abs=1e-6)


def test_weights_come_back_to_the_bit(tiny, tmp_path):
    model = load_model(str(tiny), NAMES).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    other = load_model("builtin:tiny", NAMES).model
    assert not equal_states(other, model)
    other.load_state_dict(read_weights(other, saved(model, tmp_path / "saved")))
    assert equal_states(other, model)


def test_float64_weights_come_back_to_the_bit(tiny, tmp_path):
    model = load_model(str(tiny), NAMES).model.double()
    with torch.no_grad():
        model.vit.classifier.weight.add_(1 / 3)
    other = load_model("builtin:tiny", NAMES).model.double()
    other.load_state_dict(read_weights(other, saved(model, tmp_path / "saved")))
    assert equal_states(other, model)


@pytest.mark.parametrize("lost", [BODY, "classifier.weight"])
def test_weights_that_lack_a_tensor_are_not_restored(lost, tiny):
    model = load_model(str(tiny), NAMES).model
    change_weights(tiny, lambda tensors: tensors.pop(lost))
    with pytest.raises(ModelError, match="missing"):
        read_weights(model, tiny)


def test_weights_of_other_classes_are_not_restored(tiny):
    model = load_model(str(tiny), ["x", "y", "z"]).model
    with pytest.raises(ModelError):
        read_weights(model, tiny)


def test_a_saved_folder_holds_no_pickle_and_the_processor_as_it_was(tiny):
    assert {p.name for p in tiny.iterdir()} == {"config.json", "model.safetensors", PROCESSOR_FILE}
    assert json.loads((tiny / PROCESSOR_FILE).read_text()) == load_model("builtin:tiny", NAMES).model.processor


@pytest.mark.parametrize("terminal", [True, False])
def test_downloads_show_a_bar_on_a_terminal_only(terminal, monkeypatch):
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: terminal, write=lambda text: None))
    load_model("builtin:tiny", NAMES)
    assert are_progress_bars_disabled() is not terminal
