"""Training in several processes, with PyTorch's own tools: torchrun, DDP and FSDP2. Without torchrun, one process."""
