"""Names and parameters of torch's optimizers and schedules and of transformers' schedules, read from their source.

Importing torch takes three seconds and transformers one more. A mistyped flag is told at once.
"""

import ast
import importlib.util
import inspect
from functools import cache
from pathlib import Path

Parameters = dict[str, inspect.Parameter]


@cache
def torch_optimizers() -> dict[str, Parameters]:
    """What each class of torch.optim takes, by the name of the class."""
    files = sorted((_folder("torch") / "optim").glob("*.py"))
    return _classes([node for file in files for node in _parsed(file)], base="Optimizer")


@cache
def torch_schedules() -> dict[str, Parameters]:
    """What each class of torch.optim.lr_scheduler takes, by the name of the class."""
    return _classes(_parsed(_folder("torch") / "optim" / "lr_scheduler.py"), base="LRScheduler")


@cache
def transformers_schedules() -> dict[str, Parameters]:
    """What each schedule of transformers.get_scheduler takes, by its name there."""
    nodes = _parsed(_folder("transformers") / "optimization.py")
    functions = {node.name: _parameters(node) for node in nodes if isinstance(node, ast.FunctionDef)}
    (table,) = (node.value for node in nodes if _assigns(node, "TYPE_TO_SCHEDULER_FUNCTION"))
    enums = [
        n for n in _parsed(_folder("transformers") / "trainer_utils.py") if getattr(n, "name", "") == "SchedulerType"
    ]
    names = {item.targets[0].id: item.value.value for item in enums[0].body if isinstance(item, ast.Assign)}
    return {names[key.attr]: functions[value.id] for key, value in zip(table.keys, table.values, strict=True)}


def _folder(package: str) -> Path:
    return Path(importlib.util.find_spec(package).submodule_search_locations[0])  # finds without importing


def _parsed(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf-8")).body


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name


def _classes(nodes: list[ast.stmt], base: str) -> dict[str, Parameters]:
    """The public classes that derive from `base`, directly or not."""
    found, known = {}, {base}
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    for _ in classes:  # until no base class can be unknown any more
        for node in classes:
            if known & {getattr(parent, "id", None) for parent in node.bases} and node.name not in known:
                known.add(node.name)
                inits = [item for item in node.body if getattr(item, "name", "") == "__init__"]
                if inits and not node.name.startswith("_"):
                    found[node.name] = {k: v for k, v in _parameters(inits[0]).items() if k != "self"}
    return found


def _parameters(function: ast.FunctionDef) -> Parameters:
    arguments, kinds = function.args, inspect.Parameter
    places = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(places) - len(arguments.defaults)) + arguments.defaults + arguments.kw_defaults
    found = {}
    for item, default in zip(places + arguments.kwonlyargs, defaults, strict=True):
        value = kinds.empty if default is None else _value(default)
        found[item.arg] = kinds(item.arg, kinds.KEYWORD_ONLY, default=value)
    if arguments.kwarg:
        found[arguments.kwarg.arg] = kinds(arguments.kwarg.arg, kinds.VAR_KEYWORD)
    return found


def _value(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:  # not a literal, such as DEFAULT_NS_STEPS
        return ...
