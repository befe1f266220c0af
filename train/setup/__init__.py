"""From the configuration to the objects that `fit` works with."""
