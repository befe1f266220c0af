"""Whether probabilities mean what they say: of images given 0.8, eight in ten should be right."""

from collections.abc import Sequence
from dataclasses import dataclass

BINS = 15  # of equal width, as C. Guo et al., 2017


@dataclass(frozen=True)
class Bin:
    """Images whose predicted class has a probability in one range."""

    low: float
    high: float
    images: int
    confidence: float  # mean probability of the predicted class
    accuracy: float


def reliability(confidences: Sequence[float], correct: Sequence[bool]) -> list[Bin]:
    """The bins of a reliability diagram that hold images."""
    found: dict[int, list[int]] = {}
    for index, confidence in enumerate(confidences):
        found.setdefault(min(int(confidence * BINS), BINS - 1), []).append(index)
    return [
        Bin(
            number / BINS,
            (number + 1) / BINS,
            len(images),
            sum(confidences[index] for index in images) / len(images),
            sum(correct[index] for index in images) / len(images),
        )
        for number, images in sorted(found.items())
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between confidence and accuracy, weighted by images (ECE)."""
    images = sum(part.images for part in bins)
    return sum(part.images * abs(part.confidence - part.accuracy) for part in bins) / images


def reliability_svg(bins: Sequence[Bin]) -> str:
    """The diagram: bars of accuracy over confidence, the diagonal of honest probabilities, images in each bin."""
    bars = "".join(
        f'<rect x="{40 + 400 * part.low:.1f}" y="{420 - 400 * part.accuracy:.1f}" width="{400 / BINS - 2:.1f}"'
        f' height="{400 * part.accuracy:.1f}" fill="#4477aa"><title>{part.images} images: confidence'
        f" {part.confidence:.3f}, accuracy {part.accuracy:.3f}</title></rect>"
        for part in bins
    )
    marks = "".join(
        f'<text x="{40 + 400 * share:.0f}" y="438" text-anchor="middle">{share:g}</text>'
        f'<text x="34" y="{424 - 400 * share:.0f}" text-anchor="end">{share:g}</text>'
        for share in (0, 0.5, 1)
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 460 470" font-family="sans-serif" font-size="14">'
        '<rect width="460" height="470" fill="#fff"/><path d="M40 20V420H440" fill="none" stroke="#333"/>'
        f'{bars}<path d="M40 420L440 20" stroke="#bb5500" stroke-dasharray="6 4"/>{marks}'
        '<text x="240" y="460" text-anchor="middle">confidence</text>'
        '<text x="12" y="220" text-anchor="middle" transform="rotate(-90 12 220)">accuracy</text></svg>\n'
    )
