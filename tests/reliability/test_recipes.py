"""Every recipe, alone and with others, killed and resumed with other workers, ends in the bits of an unbroken run."""

import random
import shutil

import pytest

from tests.reliability.harness import RUN, KillAt, draw, finish, kill_group, outcome, start

RECIPES = {
    "flip": ("--augment", "flip"),
    "flip_both": ("--augment", "flip_both"),
    "trivial": ("--augment", "trivial"),
    "rand": ("--augment", "rand", "--augment_magnitude", 15),
    "auto": ("--augment", "auto"),
    "crop": ("--random_resized_crop", 0.4),
    "erasing": ("--random_erasing", 0.5),
    "mixup": ("--mixup", 0.4),
    "cutmix": ("--cutmix", 1.0),
    "smoothing": ("--label_smoothing", 0.1),
    "weights": ("--class_weights", "balanced"),
    "named weights": ("--class_weights", "healthy=3"),
    "adjusted": ("--logit_adjustment", 1),
    "balanced": ("--sampler", "balanced"),
    "ema": ("--ema", 0.9),
    "layers": ("--layer_decay", 0.7),
    "frozen block": ("--freeze", 1),
    "frozen backbone": ("--freeze", "backbone"),
    "recomputed": ("--gradient_checkpointing", "true"),
    "larger": ("--image_size", 48),
    "patience": ("--early_stopping_patience", 3),
    "until": ("--until", "loss=1.09"),
    "epoch": ("--eval_steps", "epoch", "--save_steps", "epoch", "--logging_steps", "epoch"),
}
KILLS = 3


def without_effect(chosen: dict) -> set[str]:
    """What the program refuses beside the others."""
    of_backbone = {"--layer_decay", "--gradient_checkpointing"} if chosen.get("--freeze") == "backbone" else set()
    return of_backbone | ({"--logit_adjustment"} if "--sampler" in chosen else set())


def killed_and_resumed(flags: tuple, folder, rng: random.Random) -> str:
    """The outcome of a run that is killed up to three times; each start has another number of workers and a cache."""
    common = (*RUN, *flags, "--output_dir", folder, "--resume_from_checkpoint", "auto", "--cache_dir", folder.parent)
    for _ in range(KILLS):
        changes = (
            "--dataloader_num_workers",
            rng.choice([0, 2]),
            "--image_cache",
            rng.choice(["none", "memory", "disk"]),
        )
        changes = (*changes, "--async_save", rng.choice(["true", "false"]))
        process = start((*common, *changes), before=KillAt(rng.randint(1, 60), str(folder)))
        process.join(60)
        kill_group(process)
        process.join()
        if process.exitcode == 0:
            break  # it was done before it could be killed
    assert finish(start((*common, "--dataloader_num_workers", rng.choice([0, 2])))) == 0
    return outcome(folder)


def check(flags: tuple, tmp_path, seed: int) -> None:
    whole = tmp_path / "whole"
    assert finish(start((*RUN, *flags, "--output_dir", whole))) == 0
    assert killed_and_resumed(flags, tmp_path / "killed", draw(seed)) == outcome(whole)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_resumes_to_the_same_bits(name, tmp_path):
    check(RECIPES[name], tmp_path, seed=len(name))


@pytest.mark.parametrize("number", range(20))
def test_recipes_together_resume_to_the_same_bits(number, tmp_path):
    rng, chosen = random.Random(20261128 + number), {}
    for name in rng.sample(list(RECIPES), rng.randint(3, 8)):
        flags = RECIPES[name]
        if not {flag for flag in flags if str(flag).startswith("--")} & chosen.keys():  # one value a flag
            chosen |= dict(zip(flags[::2], flags[1::2], strict=True))
    for name in without_effect(chosen):
        chosen.pop(name, None)
    print(chosen)
    check(tuple(part for pair in chosen.items() for part in pair), tmp_path, seed=number)
