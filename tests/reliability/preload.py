"""What every forked run needs, imported once by the fork server."""

import torch

torch.set_num_threads(1)
