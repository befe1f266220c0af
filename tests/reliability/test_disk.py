import os
import subprocess

import pytest

from tests.reliability.faults import fail_at_every_call
from tests.reliability.flips import flip_best, flip_bits
from tests.reliability.harness import RUN, finish, start
from train.checkpoint.folder import list_checkpoints
from train.checkpoint.manifest import verify


def test_a_flipped_bit_a_cut_or_a_swapped_file_is_noticed(tmp_path):
    report = flip_bits(tmp_path, most=4000, seed=5)
    print(report)
    assert not report.failures and report.facts["bytes"] >= 4096, report.failures[:5]


def test_a_flipped_byte_of_the_best_is_never_exported(tmp_path):
    report = flip_best(tmp_path, most=int(os.environ.get("PLAINLOOP_FLIPS", "150")), seed=6)
    print(report)
    assert report.trials >= 450 and not report.failures, report.failures[:5]


def test_an_error_at_any_call_of_a_save_is_one_line_and_costs_nothing(tmp_path):
    report = fail_at_every_call(tmp_path, most=60, every=4)
    print(report)
    assert report.trials >= 12 and not report.failures, report.failures[:5]


def test_a_disk_that_is_really_full_keeps_what_was_saved(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small file system: {mounted.stderr.strip()}")
    try:
        log = tmp_path / "log"
        assert finish(start((*RUN, "--save_total_limit", 9, "--output_dir", disk / "run"), log=log)) == 1
        said = log.read_text()
        assert said.splitlines()[-1].startswith("error: cannot write in") and os.strerror(28) in said
        assert "Traceback" not in said
        saved = list_checkpoints(disk / "run")
        assert saved
        for _, checkpoint in saved:
            verify(checkpoint)
    finally:
        subprocess.run(["umount", disk], check=True)
