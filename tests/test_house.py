"""The shape of the code: which room may import which, and how large things may get."""

import ast
import graphlib
import io
import re
import tokenize

import pytest

from tests.running import ROOT

# Between the folders of train/, and the files beside them, imports go up this list and never down.
TRAIN = [
    *("errors", "distributed", "optimizers", "system", "config", "recipes"),
    *("precision", "loss", "evaluate", "optim", "state"),
    *("checkpoint", "inference", "report", "output", "loop", "setup", "main", "export", "serving", "commands"),
]
DATA = [
    "addresses",
    "seeds",
    "files",
    "cores",
    "threads",
    "plan",
    "reading",
    "augment",
    "cache",
    "loading",
    "sources",
    "inspect",
    "pipeline",
]


def modules(package):
    return sorted(path for path in (ROOT / package).rglob("*.py") if "__pycache__" not in path.parts)


def room(parts):
    """`train.checkpoint.folder` -> `checkpoint`; the package itself -> None."""
    return parts[1] if len(parts) > 1 else None


def imports(path):
    """(room that imports, package and room imported) for every import in a file, wherever it stands in it."""
    own = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                found = (*node.module.split("."), name.name)
                yield room(own), found[0], room(found)


@pytest.mark.parametrize(("package", "order"), [("train", TRAIN), ("data", DATA)])
def test_imports_between_rooms_go_one_way(package, order):
    edges = {}
    for path in modules(package):
        for own, other, inner in imports(path):
            if other == package and inner != own and inner in order and own is not None:
                edges.setdefault(own, set()).add(inner)
                assert order.index(inner) < order.index(own), f"{path}: {own} imports {inner}"
    assert {room(path.relative_to(ROOT).with_suffix("").parts) for path in modules(package)} <= {*order, "__init__"}
    assert edges and list(graphlib.TopologicalSorter(edges).static_order())


def test_data_and_models_know_nothing_of_train_or_of_each_other():
    for package, strangers in (("data", {"train", "models"}), ("models", {"train", "data"})):
        for path in modules(package):
            assert not {other for _, other, _ in imports(path)} & (strangers | {"tests", "scripts"}), path


def test_the_hallway_has_at_most_ten_files():
    assert len([path for path in (ROOT / "train").iterdir() if path.is_file()]) <= 10


def functions():
    for package in ("train", "data", "models", "scripts"):
        for path in modules(package):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield path, node


def lines_of_code(path, node):
    """Lines that hold anything but comments, blanks and the docstring."""
    text = path.read_text(encoding="utf-8")
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in silent]
    code = {line for t in tokens for line in range(t.start[0], t.end[0] + 1)}
    first = node.body[0]
    if ast.get_docstring(node):
        code -= set(range(first.lineno, first.end_lineno + 1))
    return len(code & set(range(node.lineno, node.end_lineno + 1)))


def test_the_loop_stays_short():
    sizes = {n.name: (lines_of_code(p, n), len(n.args.args)) for p, n in functions() if p.name == "loop.py"}
    assert sizes["fit"] <= (60, 5) and sizes["fit"][1] <= 5, sizes
    assert sizes["train_step"][0] <= 25 and sizes["train_step"][1] <= 4, sizes


def test_no_function_is_long():
    long = [(str(p), n.name) for p, n in functions() if n.name != "fit" and n.end_lineno - n.lineno >= 50]
    assert not long


def test_logits_and_normalisation_stay_in_models():
    for package in ("train", "data", "scripts"):
        for path in modules(package):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\.logits\b(?!\()", text) and "normalize:" not in text, path
