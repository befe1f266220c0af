"""What every forked run needs, imported once by the fork server."""

import torch

import train.build.job
import train.config.cli
import train.output.failures
import train.output.results  # noqa: F401

torch.set_num_threads(1)
