"""Several runs: which recipe is better, and whether that is luck. Nothing here imports torch."""
