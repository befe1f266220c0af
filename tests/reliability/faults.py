"""R4: the disk says no, at each call of a save in turn."""

import errno
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from tests.reliability.harness import RUN, Report, finish, outcome, start
from tests.reliability.kills import unbroken
from train.checkpoint.folder import list_checkpoints
from train.checkpoint.manifest import CheckpointError, verify

CODES = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)


@dataclass
class FailAt:
    """Run in the child: the `number`th change to the disk of a save fails with an error, once."""

    number: int
    code: int
    folder: str

    def __call__(self) -> None:
        """Raise from an audit hook, which is before the call; fsync has no event, so it is wrapped."""
        fsync, left = os.fsync, [self.number]

        def count(of_a_checkpoint: bool) -> None:
            left[0] -= of_a_checkpoint
            if of_a_checkpoint and left[0] == 0:
                print("fault at", traceback.extract_stack(limit=6)[0])
                raise OSError(self.code, os.strerror(self.code))

        def watch(event: str, arguments: tuple) -> None:
            if event == "open":
                concerns = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            else:
                concerns = event in ("os.rename", "os.mkdir", "os.symlink", "os.chmod")
            if concerns and any(str(part).startswith(self.folder) for part in arguments[:2]):
                count("checkpoint-" in "".join(map(str, arguments[:2])))

        def counted_fsync(descriptor: int) -> None:
            count("checkpoint-" in str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            fsync(descriptor)

        os.fsync = counted_fsync
        sys.addaudithook(watch)


def fail_at_every_call(folder: Path, most: int, every: int = 1) -> Report:
    """Each error at each call of the saves: one line, what was saved is whole, and a resume ends in the same bits."""
    report = Report("R4 the disk says no")
    expected = unbroken(folder, 1)
    for number in range(1, most + 1, every):
        code = CODES[(number // every) % len(CODES)]
        out, log = folder / f"call-{number}", folder / f"log-{number}"
        saving = ("--async_save", ("true", "false")[number // every % 2])
        exit_code = finish(start((*RUN, *saving, "--output_dir", out), FailAt(number, code, str(out)), log))
        last = log.read_text().splitlines()[-1]
        if exit_code == 0 and "fault at" not in log.read_text():
            break  # more calls than the run makes
        # makedirs(exist_ok=True) shrugs off an error where the folder is there: then nothing has failed
        right = exit_code == 0 or (
            exit_code == 1 and last.startswith("error: cannot write in") and os.strerror(code) in last
        )
        try:
            for _, checkpoint in list_checkpoints(out):
                verify(checkpoint)
        except CheckpointError as error:
            right, last = False, str(error)
        again = finish(start((*RUN, "--output_dir", out, "--resume_from_checkpoint", "auto")))
        report.check(
            right and again == 0 and outcome(out) == expected, f"call {number}, {errno.errorcode[code]}: {last}"
        )
    return report
