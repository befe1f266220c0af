"""The geometry of line charts, which the template draws as SVG. Colours are the style sheet's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 220  # units of the drawing, near the pixels of a phone, where its text is read at its own size
LEFT, RIGHT, TOP, BOTTOM = 54, 66, 20, 38
MOST_POINTS = 400  # of one line; more cannot be told apart
DOTS = 30  # a line of fewer points shows them
LABEL_HEIGHT = 14
COLOURS = 7  # of the style sheet

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """What was logged under one name: (update, value) in order."""

    label: str
    points: list[Point]
    colour: int = 0


@dataclass(frozen=True)
class Drawn:
    """A line in units of the drawing."""

    label: str
    colour: int  # 1..COLOURS
    dashed: bool  # where colours are used a second time
    path: str  # of a polyline
    dots: list[Point]
    label_y: float


@dataclass(frozen=True)
class Chart:
    """A chart that is ready to be drawn."""

    title: str
    lines: list[Drawn]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    best_x: float | None = None
    said: str = ""  # the same in words, for those who do not see it
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM  # of the plot
    width, height = WIDTH, HEIGHT


def chart(title: str, lines: Sequence[Line], best_step: int | None = None) -> Chart | None:
    """A chart of the finite values of these lines; None if there are none.

    Args:
        title: what is measured.
        lines: by update.
        best_step: the update to mark.
    """
    lines = [Line(line.label, finite(line.points), line.colour) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    values = [value for line in lines for _, value in line.points]
    steps = [step for line in lines for step, _ in line.points]
    y_ticks, x_ticks = ticks(min(values), max(values), 4), ticks(0, max(steps), 4)
    low, high, last = min(y_ticks[0], *values), max(y_ticks[-1], *values), max(steps)

    def x(step: float) -> float:
        return round(LEFT + step / last * (WIDTH - LEFT - RIGHT), 1) if last else LEFT

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    placed = [[(x(step), y(value)) for step, value in thinned(line.points)] for line in lines]
    label_ys = apart([points[-1][1] for points in placed])
    drawn = [
        Drawn(
            line.label,
            line.colour % COLOURS + 1,
            line.colour >= COLOURS,
            " ".join(f"{px},{py}" for px, py in points),
            points if len(points) <= DOTS else [],
            label_y,
        )
        for line, points, label_y in zip(lines, placed, label_ys, strict=True)
    ]
    last_values = "; ".join(f"{line.label} {line.points[-1][1]:.4g} at the end" for line in lines[:10])
    return Chart(
        title,
        drawn,
        [(x(step), f"{step:g}") for step in x_ticks if step <= last],
        [(y(value), tick_text(value)) for value in y_ticks],
        None if best_step is None else x(best_step),
        f"{title} by update: {last_values}",
    )


def finite(points: Sequence[Point]) -> list[Point]:
    """Without NaN and infinity, which no axis has."""
    return [(step, value) for step, value in points if math.isfinite(value)]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that span the range."""
    if high <= low:
        low, high = (low - abs(low) * 0.1, high + abs(high) * 0.1) if low else (0.0, 1.0)
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def tick_text(value: float) -> str:
    """0.25, 1.5e-4."""
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def thinned(points: list[Point]) -> list[Point]:
    """At most MOST_POINTS, each the mean of its neighbours; the last one is kept as it is."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil((len(points) - 1) / (MOST_POINTS - 1))
    groups = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    return [*((sum(s for s, _ in g) / len(g), sum(v for _, v in g) / len(g)) for g in groups), points[-1]]


def apart(heights: list[float]) -> list[float]:
    """Where labels stand that would else lie on one another: as near to their lines as there is room."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = [heights[index] for index in order]
    gap = min(LABEL_HEIGHT, (HEIGHT - TOP - BOTTOM) / max(1, len(heights) - 1))
    for number in range(1, len(placed)):  # down, as far as the one above asks
        placed[number] = max(placed[number], placed[number - 1] + gap)
    for number in range(len(placed)):  # and up again, where there is no room below
        placed[-1 - number] = min(placed[-1 - number], HEIGHT - BOTTOM - number * gap)
    result = [0.0] * len(heights)
    for index, height in zip(order, placed, strict=True):
        result[index] = round(height, 1)
    return result
