"""The errors that end a run with one line instead of a traceback."""


class ConfigError(Exception):
    """A flag, a configuration file or a run's folder cannot be used; the message says what to do. Exit code 2."""


class RunError(Exception):
    """A run that was set up correctly could not continue; everything it saved is intact. Exit code 1."""


class LostProcessError(Exception):
    """Another process of this run failed and has already printed why."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the CPU. Told by name and text: torch may not be imported yet."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "DefaultCPUAllocator" in str(error) or "annot allocate memory" in str(error)


class NonFiniteError(ArithmeticError):
    """The loss or the gradient of an update was NaN or infinite; neither it nor any later update was applied."""

    def __init__(self, what: str, update: int) -> None:
        """`what` was wrong with `update` (counted from 1)."""
        super().__init__(what)
        self.what, self.update = what, update
