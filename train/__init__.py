"""The hand-written loop, train/loop.py, and the rooms around it."""

import os
import signal
import sys
from types import FrameType


def _stop(number: int, frame: FrameType | None) -> None:
    os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


# Under `python -m train.main` and `plainloop` these are the first lines of ours that run. Until main() has its own
# handlers there is nothing to save, and Python's would print a traceback. Programs that import us keep theirs.
if sys.argv and sys.argv[0].rpartition("/")[2] in ("-m", "plainloop"):
    for _number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(_number) != signal.SIG_IGN:
            signal.signal(_number, _stop)
