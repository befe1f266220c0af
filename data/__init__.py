"""From a dataset's name or folder to batches of uint8 pixels. Never imports `train` or `models`."""


class DataError(Exception):
    """The data cannot be used as asked; the message is one line that says what to do."""
