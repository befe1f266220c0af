"""Checkpoints: saved atomically, verified before they are read, restored exactly."""
