"""--help answers at once: nothing heavy is imported for it."""

import json
import subprocess
import sys

from tests.running import ROOT
from train.commands.plainloop import COMMANDS

HEAVY = ("torch", "transformers", "datasets", "torchvision", "fastapi", "onnx", "onnxruntime", "wandb", "mlflow")
PROGRAM = f"""
import contextlib, io, json, sys
from train.commands.plainloop import COMMANDS, main
texts = {{}}
for name in COMMANDS:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([name, "--help"])
    texts[name] = out.getvalue()
print(json.dumps([texts, sorted(set({HEAVY}) & set(sys.modules))]))
"""


def test_the_help_of_every_command_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60)
    texts, imported = json.loads(done.stdout)
    assert imported == []
    for name in COMMANDS:
        assert texts[name].startswith(f"usage: plainloop {name}") and len(texts[name].splitlines()) > 4
