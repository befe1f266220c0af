"""Pictures for the trackers: the confusion matrix, and validation images with their predictions."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from data.plan import Batch
from train.precision import Precision

CELL, MARGIN, CAPTION = 56, 150, 34  # pixels
MOST_CLASSES = 40  # a larger matrix cannot be read as a picture; eval_results.json has its numbers


def confusion_picture(confusion: list[list[int]], label_names: list[str]) -> torch.Tensor:
    """Counts [true][predicted] as a heat map, rows the true class; uint8 [3, h, w]."""
    classes, label_names = len(label_names), [" ".join(name.split()) for name in label_names]  # Pillow wants one line
    picture = Image.new("RGB", (MARGIN + classes * CELL, MARGIN + classes * CELL), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    for true, row in enumerate(confusion):
        y = MARGIN + true * CELL
        draw.text((4, y + CELL // 2), label_names[true][:22], fill="black", font=font, anchor="lm")
        for predicted, count in enumerate(row):
            x, share = MARGIN + predicted * CELL, count / max(1, sum(row))
            shade = (int(255 - 225 * share), int(255 - 150 * share), int(255 - 70 * share))
            draw.rectangle((x, y, x + CELL - 2, y + CELL - 2), fill=shade)
            ink = "white" if share > 0.6 else "black"
            draw.text((x + CELL // 2, y + CELL // 2), str(count), fill=ink, font=font, anchor="mm")
    for predicted, name in enumerate(label_names):
        upright = Image.new("RGB", (MARGIN - 8, CELL), "white")
        ImageDraw.Draw(upright).text((0, CELL // 2), name[:22], fill="black", font=font, anchor="lm")
        picture.paste(upright.rotate(90, expand=True), (MARGIN + predicted * CELL, 4))
    draw.text((4, 4), "rows: true\ncolumns: predicted", fill="black", font=font)
    return _tensor(picture)


@torch.inference_mode()
def prediction_picture(
    model: nn.Module,
    batch: Batch,
    precision: Precision,
    label_names: list[str],
    most: int = 8,
) -> torch.Tensor:
    """The first images of a batch side by side, each over its true and predicted class; uint8 [3, h, w]."""
    was_training = model.training
    model.eval()
    pixels = batch["pixel_values"][:most]
    with precision.autocast():
        probabilities = model(pixels).float().softmax(-1)
    model.train(was_training)
    label_names = [" ".join(name.split()) for name in label_names]
    side = 160
    sheet = Image.new("RGB", (len(pixels) * side, side + CAPTION), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    labels = batch["labels"][:most].tolist()
    for position, (image, row, label) in enumerate(zip(pixels.cpu(), probabilities.cpu(), labels, strict=True)):
        shown = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((side - 4, side - 4))
        sheet.paste(shown, (position * side, 0))
        share, predicted = row.max(0)
        ink = "darkgreen" if predicted == label else "firebrick"
        text = f"{label_names[predicted][:18]} {share:.0%}\ntrue: {label_names[label][:18]}"
        draw.text((position * side + 2, side), text, fill=ink, font=font)
    return _tensor(sheet)


def _tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
