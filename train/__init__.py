"""The hand-written loop and what surrounds it. `python -m train.main --help` lists every flag."""


class ConfigError(Exception):
    """A flag, a configuration file or the folder of a run is not usable; the message says what to do."""


class RunError(Exception):
    """A run that was set up well could not go on; the message says what to do. What it had saved is whole."""


class LostProcessError(Exception):
    """Another process of this run has failed, and has said why."""
