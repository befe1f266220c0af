"""Images decoded once: checked, and kept if there is room."""
