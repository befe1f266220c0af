"""Pictures for the trackers: the confusion matrix, and validation images with their predictions."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data.reading.decode import decode
from train.recipes.predictions import Prediction, some_right, worst
from train.report.pictures import ImageBytes

CELL, MARGIN, CAPTION = 56, 150, 34  # pixels
MOST_CLASSES = 40  # a larger matrix cannot be read as a picture; eval_results.json has its numbers
ACROSS, SIDE = 8, 160  # predictions in a row, and pixels of each


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


def prediction_picture(predictions: list[Prediction], image: ImageBytes, label_names: list[str]) -> torch.Tensor:
    """The worst mistakes, then a few right ones, each over its true and predicted class; uint8 [3, h, w]."""
    label_names = [" ".join(name.split()) for name in label_names]
    wrong = worst(predictions, ACROSS)
    shown = wrong + some_right(predictions, 2 * ACROSS - len(wrong))
    rows = math.ceil(len(shown) / ACROSS)
    sheet = Image.new("RGB", (ACROSS * SIDE, rows * (SIDE + CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for position, found in enumerate(shown):
        row, column = divmod(position, ACROSS)
        x, y = column * SIDE, row * (SIDE + CAPTION)
        pixels = decode(image(found.index), f"validation image {found.index}").permute(1, 2, 0).numpy()
        sheet.paste(ImageOps.contain(Image.fromarray(pixels), (SIDE - 4, SIDE - 4)), (x, y))
        ink = "darkgreen" if found.predicted == found.label else "firebrick"
        text = f"{label_names[found.predicted][:18]} {found.probability:.0%}\ntrue: {label_names[found.label][:18]}"
        draw.text((x + 2, y + SIDE), text, fill=ink, font=font)
    return _tensor(sheet)


def _tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
