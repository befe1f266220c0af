# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a folder of images to a model that you trust
#
# Inspect, train, look at the mistakes, swap the optimizer, predict, export. It runs on leaves that the package draws
# itself, in about two minutes on two cores. Open it as a notebook with jupytext, or run it: `python docs/tutorial.py`.

# %%
import csv
import io
from pathlib import Path

import torch
from PIL import Image

from train.commands.plainloop import main as plainloop

LEAVES = ["--dataset", "builtin:leaves", "--max_train_samples", "600", "--max_eval_samples", "150"]

# %% [markdown]
# ## Inspect
# What is in the data, before anything is trained: counts, broken files, copies, leaks between the splits.

# %%
plainloop(["inspect", *LEAVES, "--output_dir", "inspected"])

# %% [markdown]
# ## Train
# A small ViT from scratch. The loop is `fit` in `train/loop.py`; set a breakpoint there and call this cell again.

# %%
RECIPE = [*LEAVES, "--preset", "leaves", "--num_train_epochs", "4", "--eval_steps", "epoch", "--save_steps", "epoch"]
plainloop(["train", *RECIPE, "--output_dir", "runs/adamw"])

# %% [markdown]
# ## Look at the mistakes
# `runs/adamw/report.html` shows them with everything else. Here is the same from `predictions.csv`: the eight images
# with the largest loss.

# %%
from data.sources import load_splits

with Path("runs/adamw/predictions.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
worst = sorted(range(len(rows)), key=lambda index: -float(rows[index]["loss"]))[:8]
for index in worst:
    print(
        f"{rows[index]['label']:18} taken for {rows[index]['predicted']:18} ({float(rows[index]['probability']):.0%})"
    )

validation = load_splits("builtin:leaves", max_eval_samples=150).validation
sheet = Image.new("RGB", (8 * 96, 96))
for place, index in enumerate(worst):
    sheet.paste(Image.open(io.BytesIO(validation.read(index))).convert("RGB").resize((96, 96)), (place * 96, 0))
sheet

# %% [markdown]
# ## Swap the optimizer
# Any class in a module of yours, called as those of `torch.optim` are. This one follows the sign of the momentum.

# %%
Path("sign_momentum.py").write_text(
    """
import torch


class SignMomentum(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-4, momentum=0.9, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(average.sign(), alpha=-group["lr"])
"""
)
optimizer = ["--optim", "sign_momentum:SignMomentum", "--learning_rate", "3e-4"]
plainloop(["train", *RECIPE, *optimizer, "--output_dir", "runs/sign"])
plainloop(["compare", "runs/adamw", "runs/sign"])  # is the difference more than luck?

# %% [markdown]
# ## Predict
# From the command line: `plainloop predict runs/adamw photos/`. From Python:

# %%
from train.inference.predictor import load_predictor
from train.precision import Precision

predictor = load_predictor("runs/adamw", Precision("fp32", torch.device("cpu")))
label, probabilities = predictor(validation.read(0))
print(label, probabilities)

# %% [markdown]
# ## Export
# One file that takes pixels of any size, checked on all validation images before it is kept.

# %%
plainloop(["export", "runs/adamw", "--format", "onnx"])
