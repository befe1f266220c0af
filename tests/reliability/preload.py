"""What every forked run needs, imported once by the fork server."""

import torch

import train.cli
import train.failures
import train.main
import train.report
import train.resume
import train.setup  # noqa: F401

torch.set_num_threads(1)
