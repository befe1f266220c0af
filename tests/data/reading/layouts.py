"""Random image folders with nasty names, and what the rules say of them, written down a second time."""

import random
import re
import unicodedata
from pathlib import Path

from tests.data.making_images import png

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
}
CLASSES = (
    *(
        "cat [adult]",
        "a*b",
        "what?",
        "a::b",
        "n#1",
        "100%",
        "%20",
        " x",
        "dev board",
        "train_interior",
        "validation set",
    ),
    *(
        "tests",
        "line\nbreak",
        "café",
        unicodedata.normalize("NFD", "naïve"),
        "日本",
        "a.jpg",
        "Train2",
        "0",
        "-",
        "{x}",
        "a;b",
    ),
    *("a&b=c", "it's", '"', "~", "$HOME", "**", "[0-9]"),
)
FILES = (
    "1.png",
    "2.PNG",
    "3.Png",
    "a b.png",
    "[1].png",
    "*.png",
    "?.png",
    "x::y.png",
    "#.png",
    "100%25.png",
    "train.png",
    "é.png",
)
OTHERS = ("notes.txt", "1.json", "Thumbs.db", ".DS_Store", ".hidden.png")
SYSTEM = (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails", ".git")
DEEPER = ("", "", "cam1/", "train/", "a/b/", "val/x/")


def random_layout(seed: int) -> list[str]:
    """Paths of files, relative."""
    dice = random.Random(seed)
    classes = dice.sample(CLASSES, dice.randint(2, 5))
    kinds = dice.sample(("train", "validation", "test"), dice.randint(1, 3)) if dice.random() < 0.7 else []
    kinds = sorted({"train", *kinds}) if kinds else []
    folders = [dice.choice([n for n, kind in SPLIT_NAMES.items() if kind == one]) for one in kinds] or [""]
    paths = set()
    for folder in folders:
        root = dice.choice((str, str.upper, str.title))(folder) + "/" if folder else ""
        for name in classes:
            for file in dice.sample(FILES, dice.randint(1, 4)):
                paths.add(f"{root}{name}/{dice.choice(DEEPER) if dice.random() < 0.3 else ''}{file}")
            if dice.random() < 0.3:
                paths.add(f"{root}{name}/{dice.choice(OTHERS)}")
        if dice.random() < 0.3:
            paths.add(f"{root}{dice.choice(SYSTEM)}/{dice.choice(FILES)}")
    if dice.random() < 0.3:
        paths.add(dice.choice(OTHERS))
    mistake = dice.random()
    if mistake < 0.1:
        paths.add(f"{dice.choice(('other', 'train', 'images', 'seg_train'))}/{dice.choice(FILES)}")
    elif mistake < 0.15:
        paths.add(f"{dice.choice(('more', 'val'))}/{dice.choice(CLASSES)}/{dice.choice(FILES)}")
    return sorted(paths)


def expected(paths: list[str]) -> dict[str, tuple[str, str]] | None:
    """Path -> (split, class) by the rules; None if they refuse the layout."""
    hidden = {*SYSTEM, "Thumbs.db"}
    seen = [p for p in paths if not any(part.startswith(".") or part in hidden for part in p.split("/"))]
    images = [p.split("/") for p in seen if p.lower().endswith(".png")]
    tops = {parts[0] for parts in images if len(parts) > 1}
    splits = {
        top: SPLIT_NAMES[top.lower()]
        for top in tops
        if top.lower() in SPLIT_NAMES and any(parts[0] == top and len(parts) > 2 for parts in images)
    }
    if splits:
        bare_tests = {top for top in tops - splits.keys() if SPLIT_NAMES.get(top.lower()) == "test"}
        if tops - splits.keys() - bare_tests or len(set(splits.values())) < len(splits):
            return None
        if any(parts[0] in splits and len(parts) == 2 for parts in images):
            return None
        return {
            "/".join(parts): (splits[parts[0]], parts[1]) for parts in images if parts[0] in splits and len(parts) > 2
        }
    if any(len(parts) == 1 for parts in images):
        return None
    if len(tops) > 1 and all(top.lower() in SPLIT_NAMES for top in tops):
        return None
    inner = {top: {p[1].lower() for p in images if p[0] == top and len(p) > 3} & SPLIT_NAMES.keys() for top in tops}
    if tops and (all(inner.values()) or any(len({SPLIT_NAMES[n] for n in found}) > 1 for found in inner.values())):
        return None
    for top in tops:
        only_deeper = all(len(parts) > 2 for parts in images if parts[0] == top)
        words = re.findall("[A-Z]?[a-z]+|[A-Z]+", top)
        if only_deeper and SPLIT_NAMES.keys() & {word.lower() for word in words}:
            return None
    return {"/".join(parts): ("train", parts[0]) for parts in images}


def build(root: Path, paths: list[str], seed: int) -> dict[str, bytes]:
    """Write a layout, some of it through links to elsewhere; returns the content of each path."""
    dice, content = random.Random(seed), {}
    for number, path in enumerate(paths):
        content[path] = png(seed * 1000 + number)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content[path])
    elsewhere = root.parent / f"{root.name}-elsewhere"
    for number, target in enumerate(sorted(root.rglob("*"))):
        if dice.random() < 0.1 and target.exists() and not any(part.is_symlink() for part in (target, *target.parents)):
            elsewhere.mkdir(exist_ok=True)
            target.rename(elsewhere / str(number))
            target.symlink_to(elsewhere / str(number))
    return content
