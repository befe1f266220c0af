"""From a plan to batches: loaders, workers, streams."""
