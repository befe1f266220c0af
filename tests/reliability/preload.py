"""What every forked run needs, imported once by the fork server."""

import torch

# Each run is forked from here: what is missing in this list, each of a thousand runs imports anew. The one noqa keeps
# `ruff --fix` from deleting all of them as unused.
import train.checkpoint.resume
import train.config.checks
import train.config.cli
import train.loop
import train.main
import train.output.failures
import train.output.results
import train.setup.inputs
import train.setup.job  # noqa: F401

torch.set_num_threads(1)
