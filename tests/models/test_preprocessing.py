import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from transformers import AutoImageProcessor, BitImageProcessor, DeiTImageProcessor, ViTImageProcessor

from data.reading.decode import Resize, decode
from models import ModelError
from models.classifier import Classifier
from models.loading import load_model
from models.preprocessing import Normalize, read_preprocessing

HALF = {
    "do_resize": True,
    "size": {"height": 48, "width": 32},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
CROPPED = HALF | {"do_center_crop": True, "crop_size": {"height": 48, "width": 32}}
IMAGENET = HALF | {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
ODD_SIZES = [(2, 5), (31, 7), (33, 32), (48, 32), (100, 37), (375, 500)]  # height, width


def resize(processor: dict, image: torch.Tensor) -> torch.Tensor:
    size = read_preprocessing(processor)
    return Resize(size.height, size.width, size.interpolation, size.before_crop)(image)


def pixels(processor: dict, image: torch.Tensor) -> torch.Tensor:
    return Normalize(read_preprocessing(processor))(resize(processor, image)[None])


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_real_photos_become_the_processors_pixels_to_the_bit(beans, deit_tiny):
    theirs = AutoImageProcessor.from_pretrained(deit_tiny)
    file = pq.ParquetFile(next((beans / "data").glob("validation-*")))
    rows = next(file.iter_batches(batch_size=6, columns=["image"])).to_pylist()
    for row in rows:
        data = row["image"]["bytes"]
        expected = theirs(Image.open(io.BytesIO(data)), return_tensors="pt").pixel_values
        assert torch.equal(pixels(theirs.to_dict(), decode(data, "bean")), expected)


@pytest.mark.parametrize("resample", [0, 2, 3])
@pytest.mark.parametrize(
    "processor",
    [
        HALF,
        IMAGENET,
        IMAGENET | {"rescale_factor": 1 / 128},
        IMAGENET | {"do_rescale": False},
        IMAGENET | {"do_rescale": False, "do_normalize": False},
    ],
    ids=["half", "imagenet", "rescaled by 128", "not rescaled", "neither"],
)
def test_images_of_any_size_become_the_processors_pixels_to_the_bit(processor, resample):
    processor = processor | {"resample": resample}
    theirs = ViTImageProcessor(**processor)
    for height, width in ODD_SIZES:
        image = noise(height, width)
        expected = theirs(Image.fromarray(image), return_tensors="pt").pixel_values.to(torch.float32)
        assert torch.equal(pixels(processor, torch.from_numpy(image).permute(2, 0, 1)), expected), (height, width)


@pytest.mark.parametrize("resample", [0, 2, 3])
@pytest.mark.parametrize(
    ("size", "crop"),
    [
        ({"shortest_edge": 40}, {"height": 32, "width": 32}),
        ({"shortest_edge": 41}, {"height": 32, "width": 20}),
        ({"shortest_edge": 32}, {"height": 32, "width": 32}),
        ({"height": 40, "width": 41}, {"height": 32, "width": 32}),
        (41, 32),
    ],
    ids=str,
)
@pytest.mark.parametrize("maker", [BitImageProcessor, DeiTImageProcessor])
def test_the_middle_of_images_of_any_size_is_the_processors_to_the_bit(maker, size, crop, resample):
    """One number is the shortest edge to the first of them, and both sides to the other."""
    theirs = maker(size=size, crop_size=crop, resample=resample)
    stated = json.loads(theirs.to_json_string()) | {"size": size, "crop_size": crop}
    for height, width in [*ODD_SIZES, (7, 690), (65, 64)]:
        image = noise(height, width)
        expected = theirs(Image.fromarray(image), return_tensors="pt").pixel_values
        assert torch.equal(pixels(stated, torch.from_numpy(image).permute(2, 0, 1)), expected), (height, width)


def test_real_photos_are_cut_as_the_processor_cuts_them(beans):
    theirs = BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224})
    file = pq.ParquetFile(next((beans / "data").glob("validation-*")))
    for row in next(file.iter_batches(batch_size=3, columns=["image"])).to_pylist():
        data = row["image"]["bytes"]
        expected = theirs(Image.open(io.BytesIO(data)), return_tensors="pt").pixel_values
        assert torch.equal(pixels(json.loads(theirs.to_json_string()), decode(data, "bean")), expected)


@pytest.mark.parametrize("shape", [(3, 2, 300_000), (3, 300_000, 2)])
def test_the_middle_of_a_line_of_pixels_takes_no_memory(shape):
    """Whole, it would be 256 x 38,400,000 pixels."""
    processor = CROPPED | {"size": {"shortest_edge": 256}, "crop_size": 224}
    image = torch.zeros(shape, dtype=torch.uint8)
    middle = image[..., 149_000:151_000] if shape[2] > 2 else image[:, 149_000:151_000]
    middle.fill_(9)
    assert torch.equal(resize(processor, image), torch.full((3, 224, 224), 9, dtype=torch.uint8))


def test_pixels_that_are_rescaled_but_not_normalised_are_the_processors_to_the_bit():
    processor = HALF | {"do_normalize": False}
    image = noise(40, 40)
    expected = ViTImageProcessor(**processor)(Image.fromarray(image), return_tensors="pt").pixel_values
    assert torch.equal(pixels(processor, torch.from_numpy(image).permute(2, 0, 1)), expected)


@pytest.mark.parametrize("change", [{}, {"rescale_factor": 1 / 128}, {"do_normalize": False}])
def test_wider_pixels_are_the_float32_ones_widened(change):
    """What a ViT in float64 is given."""
    seen = []
    model = load_model("builtin:tiny", ["a", "b"]).model
    processor = IMAGENET | {"size": model.processor["size"]} | change
    model = Classifier(model.vit, processor).double()
    model.vit.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs))
    image = torch.from_numpy(noise(60, 50)).permute(2, 0, 1)
    assert model(resize(processor, image)[None]).dtype == torch.float64
    (wide,) = seen
    assert wide.dtype == torch.float64
    assert torch.equal(wide, pixels(processor, image).to(torch.float64))


def test_resizing_keeps_uint8_and_stretches_to_the_stated_height_and_width():
    small = resize(HALF, torch.zeros(3, 200, 100, dtype=torch.uint8))
    assert small.dtype == torch.uint8 and small.shape == (3, 48, 32)


def test_an_older_file_with_one_number_for_the_size_is_understood():
    preprocessing = read_preprocessing(HALF | {"size": 224})
    assert (preprocessing.height, preprocessing.width) == (224, 224)


def test_a_file_that_names_only_the_size_has_the_processors_defaults():
    theirs, ours = ViTImageProcessor(size={"height": 224, "width": 224}), read_preprocessing({"size": 224})
    assert ours.interpolation == InterpolationMode.BILINEAR and theirs.resample == 2
    assert ours.mean == tuple(theirs.image_mean) and ours.std == tuple(theirs.image_std)
    assert ours.rescale_factor == theirs.rescale_factor


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"resample": 1}, "resample is 1"),
        ({"resample": "bilinear"}, "resample is 'bilinear'"),
        ({"do_center_crop": True}, "do_center_crop, and crop_size is None"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 32}}, "crop_size is .*shortest_edge"),
        ({"do_center_crop": True, "crop_size": 40}, "crop_size .40, 40. cannot be cut"),
        ({"do_center_crop": True, "crop_size": 40, "size": {"shortest_edge": 39}}, "cannot be cut"),
        ({"do_center_crop": True, "crop_size": 40, "size": {"shortest_edge": "64"}}, "cannot be cut"),
        ({"do_center_crop": True, "crop_size": 40, "size": {"shortest_edge": 10**6}}, "cannot be cut"),
        ({"do_center_crop": True, "crop_size": 40, "size": {"shortest_edge": 64, "longest_edge": 65}}, "longest_edge"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
        ({"image_processor_type": "BitImageProcessor"}, "does not say do_center_crop, which a BitImageProcessor must"),
        ({"feature_extractor_type": "DeiTFeatureExtractor"}, "does not say do_center_crop"),
        ({"image_processor_type": ["ViTImageProcessor"]}, "image_processor_type is"),
        ({"size": {"height": 10**6, "width": 10**6}}, "at most 8192"),
        ({"size": {"height": 0, "width": 32}}, "size is"),
        ({"size": {"height": 48.0, "width": True}}, "size is"),
        ({"do_resize": False}, "do_resize"),
        ({"size": {"shortest_edge": 224}}, "shortest_edge"),
        ({"size": "large"}, "'large'"),
        ({"size": None}, "size is None"),
        ({"size": {"height": 224}}, "height"),
    ],
)
def test_what_would_silently_change_pixels_is_refused_by_name(change, named):
    with pytest.raises(ModelError, match=named) as caught:
        read_preprocessing(HALF | change)
    assert "preprocessor_config.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ViTFeatureExtractor", "ViTImageProcessorFast", "ViTImageProcessorPil"])
def test_other_names_of_the_same_processor_are_known(name):
    key = "feature_extractor_type" if "Feature" in name else "image_processor_type"
    assert read_preprocessing(HALF | {key: name}) == read_preprocessing(HALF)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), 10**400], ids=["nan", "inf", "-inf", "huge"]
)
@pytest.mark.parametrize("name", ["image_mean", "image_std", "rescale_factor"])
def test_a_number_that_is_not_finite_is_refused(name, value):
    with pytest.raises(ModelError, match=r"preprocessor_config\.json") as caught:
        read_preprocessing(HALF | {name: value if name == "rescale_factor" else [0.5, value, 0.5]})
    assert name in str(caught.value) or value == 10**400


@pytest.mark.parametrize("change", [{"image_mean": 0.5}, {"image_std": None}, {"size": {"height": "x", "width": 1}}])
def test_a_malformed_value_is_refused_in_one_line(change):
    with pytest.raises(ModelError):
        read_preprocessing(HALF | change)
