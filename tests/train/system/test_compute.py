import json
import multiprocessing
import os
import resource
import sys

import pytest
import torch
from torchvision.transforms import InterpolationMode

from data import cores
from data.augment import Augmentation
from data.cache.prepared import Decoded, Kept
from data.cores import usable_cores
from data.loading.loader import Images
from data.pipeline import choose_workers
from data.reading.decode import Resize
from tests.data.loading.test_loader import FIXED, split
from tests.running import run_here, run_process, weights
from train.config.schema import RunConfig
from train.errors import ConfigError
from train.precision import choose_compute
from train.system.compile import WORTH_COMPILING, choose_compile
from train.system.memory import keep_freed_memory

CPU = torch.device("cpu")


def test_a_containers_quota_counts_not_the_machines_cores(tmp_path, monkeypatch):
    here = len(os.sched_getaffinity(0))
    for text, expected in (("max 100000", here), ("50000 100000", 1), ("150000 100000", min(2, here)), ("?", here)):
        (tmp_path / "cpu.max").write_text(text)
        monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
        assert usable_cores() == expected


def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16_000_000)  # 64 MB, above malloc's limit for what goes back to the kernel at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def count_faults(answers):
    returned = faults()
    assert keep_freed_memory()
    faults()
    answers.put((returned, faults()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_that_is_kept_is_not_faulted_in_again():
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=count_faults, args=(answers,))
    process.start()
    returned, kept = answers.get(timeout=60)
    process.join()
    assert kept < 100 and returned > 10 * max(kept, 10)


def test_compiling_must_pay_off_unless_it_is_asked_for(monkeypatch):
    bf16, fp32 = (CPU, "bf16"), (CPU, "fp32")
    assert choose_compile("auto", *bf16, WORTH_COMPILING)[0]
    on, why = choose_compile("auto", *bf16, WORTH_COMPILING - 1)
    assert not on and "too few" in why
    assert not choose_compile("auto", *fp32, 10**9)[0] and choose_compile("on", *fp32, 1)[0]
    assert not choose_compile("off", *bf16, 10**9)[0]
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert choose_compile("auto", *bf16, 10**9) == (False, "there is no C++ compiler here")
    with pytest.raises(ConfigError, match=r"no g\+\+"):
        choose_compile("on", *bf16, 1)


@pytest.mark.slow
def test_a_compiled_run_trains_like_the_other_and_saves_the_same_names(tmp_path):
    """Batches of 8 are compiled; the short ones and evaluation are not. The bits differ, the training does not."""
    flags = ("--preset", "debug", "--max_train_samples", 44, "--max_steps", 12, "--output_dir")
    for name, choice in (("eager", "off"), ("compiled", "on")):
        finished = run_process(*flags, tmp_path / name, "--torch_compile", choice, timeout=400)
        assert finished.returncode == 0, finished.stderr
    eager, compiled = weights(tmp_path / "eager"), weights(tmp_path / "compiled")
    assert eager.keys() == compiled.keys()
    assert all(torch.allclose(eager[name], compiled[name], atol=1e-4) for name in eager)
    again = run_process("--output_dir", tmp_path / "compiled", "--resume_from_checkpoint", "auto", timeout=400)
    assert again.returncode == 0 and "torch.compile on" in again.stdout


def test_workers_are_chosen_by_what_decoding_takes():
    images = split(22)
    decoded = Decoded(images, FIXED)
    kept = Kept(decoded[list(range(22))], torch.arange(22))
    flip = Augmentation("flip").build(Resize(8, 8, InterpolationMode.BILINEAR))
    for pixels, augment, what in ((decoded, None, "decoding"), (kept, flip, "augmenting")):
        workers, why = choose_workers("auto", Images(pixels, images.labels, 0, augment), CPU)
        assert workers == 1 and why.startswith(f"{what} takes") and "ms per image" in why
    assert choose_workers("3", Images(decoded, images.labels), CPU) == (3, "as asked")
    assert choose_workers("auto", Images(kept, images.labels), CPU)[0] == 0


def test_what_this_device_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="--tf32 true"):
        choose_compute(RunConfig(device="cpu", tf32=True))


def test_a_trace_of_a_few_updates_shows_what_they_did(tmp_path, capsys):
    out = tmp_path / "run"
    assert run_here("--preset", "debug", "--torch_profiler", "true", "--output_dir", out) == 0
    events = json.loads((out / "profile" / "trace.json").read_text())["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert sum(name.startswith("Optimizer.step") for name in names) == 3 and "aten::addmm" in names
    assert (
        run_here("--preset", "debug", "--torch_profiler", "true", "--max_steps", 4, "--output_dir", tmp_path / "b") == 0
    )
    assert (tmp_path / "b" / "profile" / "trace.json").is_file()  # the run was over before the last update to trace
