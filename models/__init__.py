"""The networks: from a checkpoint or from a config. Never imports `train` or `data`."""


class ModelError(Exception):
    """The model cannot be used as asked; the message is one line that says what to do."""
