"""Every flag, the presets, and the record of a run."""
