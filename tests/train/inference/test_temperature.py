import json

import pytest
import torch
import torch.nn.functional as F

from train.errors import RunError
from train.inference.calibration import expected_calibration_error, reliability, reliability_svg
from train.inference.temperature import fit_temperature


def drawn(images, temperature, seed=0):
    """Logits whose labels were drawn from softmax(logits / temperature)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 4, generator=generator, dtype=torch.float64) * 4
    labels = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(1)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    assert fit_temperature(*drawn(20_000, temperature)) == pytest.approx(temperature, rel=0.05)


def test_it_is_the_one_with_the_least_loss():
    logits, labels = drawn(500, 1.7)
    found = fit_temperature(logits, labels)
    best = F.cross_entropy(logits / found, labels)
    assert all(best <= F.cross_entropy(logits / (found * by), labels) for by in (0.9, 0.99, 1.01, 1.1))


def test_where_every_image_is_right_no_temperature_is_the_best():
    logits = torch.eye(3).repeat(4, 1) * 5
    with pytest.raises(RunError, match="makes no mistake"):
        fit_temperature(logits, logits.argmax(-1))
    with pytest.raises(RunError, match="wrong, and sure of it"):
        fit_temperature(logits, (logits.argmax(-1) + 1) % 3)

    unsure = logits * 1e-3
    labels = unsure.argmax(-1)
    labels[0] = 1
    with pytest.raises(RunError, match="far too unsure"):
        fit_temperature(unsure, labels)


def test_the_calibration_error_by_hand():
    bins = reliability([0.95, 0.94, 0.55, 1.0], [True, False, True, True])
    assert [part.images for part in bins] == [1, 3]
    assert bins[1].accuracy == pytest.approx(2 / 3) and bins[1].confidence == pytest.approx(2.89 / 3)
    assert expected_calibration_error(bins) == pytest.approx((0.45 + 3 * abs(2.89 / 3 - 2 / 3)) / 4)
    assert reliability_svg(bins).count("<rect") == 3
    assert json.dumps([vars(part) for part in bins])
