import pytest
import torch
from torchvision.transforms import InterpolationMode

from data.reading.decode import Resize, decode
from models.loading import load_model
from tests.checkpoints import NAMES, small_checkpoint
from tests.data.reading.test_decode import MODES
from train.export.graph import Graph, resize_weights, rounded
from train.inference.predictor import load_predictor, resize_for
from train.precision import Precision

SIZES = [(1, 1), (1, 301), (3, 1000), (4000, 1), (33, 32), (32, 32), (40, 48), (225, 113), (500, 500), (700, 333)]


def noise(height, width, seed=0):
    """The hardest picture to resize: every pixel differs from its neighbours. Edges are clipped, too."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-200, 456, (3, height, width), generator=generator)).clamp(0, 255).to(torch.uint8)


def resized(resize, image):
    rows, columns = resize_weights(resize, *image.shape[1:])
    return rounded(rows @ rounded(image.float() @ columns.T))


@pytest.mark.parametrize("before_crop", [None, (40,), (48, 40)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest-exact"])
def test_pixels_are_those_of_training_but_for_one_in_a_thousand_that_differs_by_one(interpolation, before_crop):
    resize = Resize(32, 36, InterpolationMode(interpolation), before_crop)
    for size in (*SIZES, (1500, 2001)):
        difference = (resized(resize, noise(*size)) - resize(noise(*size)).float()).abs()
        most, share = (0, 0) if interpolation == "nearest-exact" or max(size) < 500 else (1, 1e-3)
        assert difference.max() <= most and (difference > 0).float().mean() <= share, size


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2"])  # stretched; bicubic and cropped; shortest edge, cropped
def test_probabilities_are_those_of_the_predictor(family, tmp_path):
    predictor = load_predictor(str(small_checkpoint(family, tmp_path)), Precision("fp32", torch.device("cpu")))
    graph = Graph(predictor.model).eval()
    assert len(MODES) >= 20
    pictures = [decode(data, name) for name, (data, _) in MODES.items()] + [noise(*size) for size in SIZES]
    for image in pictures:
        expected = predictor.probabilities(resize_for(predictor.model)(image)[None])[0]
        with torch.inference_mode():
            found = graph(image.permute(1, 2, 0))
        assert found.shape == (len(NAMES),) and found.dtype == torch.float32
        assert torch.allclose(found, expected, atol=1e-5), image.shape


def test_a_picture_that_is_far_too_long_is_cut_as_in_training():
    resize = Resize(16, 16, InterpolationMode.BILINEAR, (20,))
    image = noise(3, 1003)  # 703 pixels are dropped, an odd number on both sides together
    _, columns = resize_weights(resize, 3, 1003)
    assert not columns[:, :351].any() and not columns[:, 653:].any()
    assert torch.equal(resized(resize, image), resize(image).float())


def test_the_built_in_model_needs_nothing_else():
    model = load_model("builtin:small", NAMES).model.eval()
    image = noise(90, 130)
    with torch.inference_mode():
        expected = model(resize_for(model)(image)[None])[0].softmax(-1)
        assert torch.allclose(Graph(model)(image.permute(1, 2, 0)), expected, atol=1e-6)
