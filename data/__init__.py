"""From a dataset's name or folder to batches of uint8 pixels. Never imports `train` or `models`."""


class DataError(Exception):
    """The data cannot be used as asked; the message is one line that says what to do."""


def shortened(items: list[str], most: int, separator: str = ", ") -> str:
    """The first `most` items as one text, and how many more there are."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*items[:most], *more])
