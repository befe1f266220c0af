"""R3: the power goes at any moment. What was not flushed may be lost, torn or reordered; a checkpoint must be left.

A real sequence of saves is recorded, call by call. Then a small model of a disk answers: after this call, what may lie
there when the power comes back? Files that were not flushed hold anything; names in a folder that was not flushed are
the old ones, the new ones, or some of each, in any order. Every such state is laid out as real files and resumed from.
"""

import contextlib
import itertools
import os
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability.harness import Report, draw
from tests.reliability.small import small_state, train
from train.checkpoint.folder import CheckpointFolder, newest_sound
from train.checkpoint.manifest import CheckpointError, verify

Event = tuple  # ("write", path, bytes) | ("mkdir", path) | ("flush", path) | ("rename", old, new) | ...

# -- recording ---------------------------------------------------------------------------------------------

_recorders: list["Recorder"] = []


@dataclass
class Recorder:
    """Every change to the disk below a folder, in order."""

    folder: Path
    events: list[Event] = field(default_factory=list)
    _seen: dict[Path, tuple] = field(default_factory=dict)
    _busy: bool = False

    def note(self, event: Event) -> None:
        """Record what files have become since the last call, and then the call itself, which is about to happen."""
        if not self._busy:
            self._busy = True
            self._note_contents()
            self.events.append(event)
            self._busy = False

    def _note_contents(self) -> None:
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
                if self._seen.get(path) != stamp:
                    self._seen[path] = stamp
                    self.events.append(("write", path.relative_to(self.folder), path.read_bytes()))

    def relative(self, path: object) -> Path | None:
        """Below the folder, or None."""
        text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        return Path(text).relative_to(self.folder) if text.startswith(f"{self.folder}/") else None


def _watch(event: str, arguments: tuple) -> None:
    if not _recorders or _recorders[-1]._busy:
        return
    recorder = _recorders[-1]
    if event in ("os.mkdir", "os.remove", "os.rmdir") and (path := recorder.relative(arguments[0])):
        recorder.note((event[3:], path))
    elif event == "os.rename" and (path := recorder.relative(arguments[0])):
        recorder.note(("rename", path, recorder.relative(arguments[1])))
    elif event == "os.symlink" and (path := recorder.relative(arguments[1])):
        recorder.note(("symlink", path, arguments[0]))


sys.addaudithook(_watch)


@contextlib.contextmanager
def recording(folder: Path) -> Iterator[Recorder]:
    """Record what happens in the block. shutil.rmtree works by descriptors, so its removal is recorded as one."""
    recorder, fsync, rmtree = Recorder(folder), os.fsync, shutil.rmtree

    def noted_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        recorder.note(("flush", Path() if path == folder else recorder.relative(path)))
        fsync(descriptor)

    def noted_rmtree(path: Path, *arguments: object, **options: object) -> None:
        if Path(path).exists():
            recorder.note(("rmtree", recorder.relative(path)))
        recorder._busy = True
        rmtree(path, *arguments, **options)
        recorder._busy = False

    os.fsync, shutil.rmtree = noted_fsync, noted_rmtree
    _recorders.append(recorder)
    try:
        yield recorder
    finally:
        _recorders.pop()
        os.fsync, shutil.rmtree = fsync, rmtree


# -- a disk that forgets -----------------------------------------------------------------------------------


class Node:
    """A file, folder or link: what is surely on the disk, and what is not yet."""

    def __init__(self, kind: str, target: str = "") -> None:
        self.kind, self.target = kind, target
        self.content: bytes | None = None  # of a file, as the process sees it
        self.flushed: bytes | None = None
        self.names: dict[str, Node] = {}  # of a folder, as the process sees it
        self.durable: dict[str, Node] = {}
        self.pending: list[dict[str, Node | None]] = []  # changes of names not yet flushed, each atomic


class Disk:
    """Applies events; then answers what a crash may leave."""

    def __init__(self) -> None:
        self.root = Node("folder")

    def apply(self, event: Event) -> None:
        """What the process did."""
        call, path, *rest = event
        if path is None:
            return
        if call == "flush":
            self._flush(self._find(path))
            return
        parent, name = self._find(path.parent), path.name
        if call == "write":
            node = parent.names.get(name) or self._put(parent, name, Node("file"))
            node.content = rest[0]
        elif call == "mkdir":
            self._put(parent, name, Node("folder"))
        elif call == "symlink":
            self._put(parent, name, Node("link", rest[0]))
        elif call == "rename":
            self._change(parent, {name: None, rest[0].name: parent.names[name]})
        else:  # remove, rmdir, rmtree
            self._change(parent, {name: None})

    def _find(self, path: Path) -> Node:
        node = self.root
        for part in path.parts:
            node = node.names[part]
        return node

    def _put(self, parent: Node, name: str, node: Node) -> Node:
        self._change(parent, {name: node})
        return node

    def _change(self, parent: Node, change: dict[str, Node | None]) -> None:
        parent.pending.append(change)
        _rename_all(parent.names, change)

    def _flush(self, node: Node) -> None:
        if node.kind == "file":
            node.flushed = node.content
        else:
            for change in node.pending:
                _rename_all(node.durable, change)
            node.pending.clear()

    def crash(self, target: Path, rng: random.Random) -> None:
        """Lay out one state that the disk may be in."""
        _lay_out(self.root, target, rng)


def _rename_all(names: dict[str, Node], change: dict[str, Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _lay_out(node: Node, path: Path, rng: random.Random) -> None:
    path.mkdir(exist_ok=True)
    names = dict(node.durable)
    count = len(node.pending)
    if rng.random() < 0.5:  # in order, cut off somewhere
        survived = node.pending[: rng.randint(0, count)]
    else:  # any of them
        survived = [change for change in node.pending if rng.random() < 0.5]
    for change in survived:
        _rename_all(names, change)
    for name, child in names.items():
        if child.kind == "folder":
            _lay_out(child, path / name, rng)
        elif child.kind == "link":
            (path / name).symlink_to(child.target)
        else:
            (path / name).write_bytes(_torn(child, rng))


def _torn(file: Node, rng: random.Random) -> bytes:
    if file.flushed == file.content or file.content is None:
        return file.flushed or b""
    new = file.content
    cut = rng.randint(0, len(new))
    return rng.choice([file.flushed or b"", b"", new, new[:cut], new[:cut] + bytes(len(new) - cut), bytes(len(new))])


# -- the battery -------------------------------------------------------------------------------------------

SAVES = ((1, 0.5), (2, 0.4), (3, 0.6), (4, 0.3), (5, 0.9))  # (update, validation loss): best 1, 2, 2, 4, 4


def record_saves(folder: Path) -> tuple[list[Event], list[tuple[int, int, int]]]:
    """The events of five saves that keep two; and (number of events, newest, best) when each had returned."""
    state, checkpoints = small_state(), CheckpointFolder(folder, "run1", {}, keep=2)
    returned = []
    with recording(folder) as recorder:
        for update, loss in SAVES:
            train(state)
            if state.best.improved_by(loss):
                state.best.value, state.best.step = loss, update
            checkpoints.save(state, 0)
            recorder.note(("flush", None))
            returned.append((len(recorder.events), update, state.best.step))
    return recorder.events, returned


def power_cuts(
    folder: Path, states: int, seed: int, without_flush: int | None = None, stop_at_first: bool = False
) -> Report:
    """R3: cut the power after each event in turn, again and again, until so many states were resumed from.

    Args:
        folder: to work in.
        states: how many.
        seed: of what survives.
        without_flush: leave out this flush (counted from 0): a planted bug, which must be found.
        stop_at_first: enough if one state is bad.
    """
    report, rng = Report("R3 power cut", facts={"seed": seed}), draw(seed)
    events, returned = record_saves(folder / "recorded")
    first, last = 1, len(events)
    if without_flush is not None:
        flushes = [number for number, event in enumerate(events) if event[0] == "flush" and event[1] is not None]
        events[flushes[without_flush]] = ("flush", None)
        first, last = flushes[without_flush], flushes[without_flush] + 40  # where its loss can show
    for round_ in itertools.count():
        disk = Disk()
        for number, event in enumerate(events, 1):
            disk.apply(event)
            if report.trials >= states or (stop_at_first and report.failures):
                return report
            if not first <= number <= last:
                continue
            left = folder / "left"
            disk.crash(left, rng)
            promised = max(((update, best) for count, update, best in returned if count <= number), default=(0, 0))
            problem = _problem(left, *promised)
            report.check(problem is None, f"round {round_}, after event {number} {event[:2]}: {problem}")
            shutil.rmtree(left)
    return report


def _problem(left: Path, newest: int, best: int) -> str | None:
    """What a resume would find wrong, if anything: an update whose save had returned must be there, and be best."""
    link = left / "best"
    if link.is_symlink():
        try:
            verify(link.resolve())
        except CheckpointError as error:
            return f"best: {error}"
    if best and (not link.is_symlink() or _step(link.readlink()) < best):
        return f"best is not yet {best}"
    found, _ = newest_sound(left)
    return None if (found and _step(found) >= newest) or not newest else f"{newest} had been saved, but is not there"


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def count_flushes(folder: Path) -> int:
    """How many flushes the five saves make."""
    events, _ = record_saves(folder)
    return sum(event[0] == "flush" and event[1] is not None for event in events)
