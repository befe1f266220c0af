"""R1, R2: kill -9 at any moment, resume, and end in the same bits."""

import shutil
import time
from pathlib import Path

from tests.reliability.harness import RUN, KillAt, Report, draw, finish, kill_group, outcome, start

MOST_KILLS = 10


def unbroken(folder: Path, accumulation: int) -> str:
    """The outcome of a run that nothing happened to."""
    out = folder / f"unbroken-{accumulation}"
    assert finish(start((*RUN, "--gradient_accumulation_steps", accumulation, "--output_dir", out))) == 0
    return outcome(out)


def kill_and_resume(folder: Path, trials: int, seed: int, seconds: float = 1e9) -> Report:
    """R1: one to ten kills a trial, half of them inside a save; each resume with another number of workers."""
    report, rng = Report("R1 kill -9 and resume"), draw(seed)
    expected = {accumulation: unbroken(folder, accumulation) for accumulation in (1, 3)}
    kills = inside = 0
    end = time.monotonic() + seconds
    for trial in range(trials):
        if time.monotonic() > end:
            break
        accumulation, out = rng.choice([1, 3]), folder / f"trial-{trial}"
        common = (
            "--gradient_accumulation_steps",
            accumulation,
            "--output_dir",
            out,
            "--resume_from_checkpoint",
            "auto",
        )
        for _ in range(rng.randint(1, MOST_KILLS)):
            saving = ("--async_save", rng.choice(["true", "false"]))
            flags = (*RUN, *common, *saving, "--dataloader_num_workers", rng.choice([0, 0, 2]))
            if rng.random() < 0.6:
                process = start(flags, before=KillAt(rng.randint(1, 120), str(out)))
                process.join(60)
            else:
                process = start(flags)
                process.join(rng.uniform(0.05, 1.2))
            kill_group(process)
            process.join()
            if process.exitcode == 0:
                break  # it was done before it could be killed
            kills += 1
            inside += any(out.glob(".tmp-*")) if out.exists() else 0
        code = finish(start((*RUN, *common, "--dataloader_num_workers", rng.choice([0, 2]))))
        right = code == 0 and outcome(out) == expected[accumulation]
        report.check(right, f"trial {trial} of seed {seed}: exit code {code}, accumulation {accumulation}")
        shutil.rmtree(out, ignore_errors=True)
    share = inside / max(1, kills)
    report.facts |= {"seed": seed, "kills": kills, "of them inside a save": f"{inside} ({share:.0%})"}
    return report


def kill_at_every_call(folder: Path, most: int = 10_000, every: int = 1) -> Report:
    """R2: kill before each change to the disk in turn, from the first save on, until the run outlives the count."""
    report = Report("R2 kill at every call of a save")
    expected = unbroken(folder, 1)
    for number in range(1, most + 1, every):
        out = folder / f"call-{number}"
        saving = ("--async_save", ("true", "false")[number % 2])
        flags = (*RUN, *saving, "--output_dir", out, "--resume_from_checkpoint", "auto")
        process = start(flags, before=KillAt(number, str(out)))
        if finish(process) == 0:
            break  # more calls than the run makes
        code = finish(start(flags))
        report.check(code == 0 and outcome(out) == expected, f"call {number}: exit code {code}")
        shutil.rmtree(out)
    return report


def kill_the_real_thing(folder: Path, model: Path, dataset: Path, kills: int, seed: int) -> Report:
    """Sixty updates of a pretrained ViT on real images, in the default precision, killed at random moments."""
    report, rng = Report("R1 on real images and a pretrained ViT", facts={"seed": seed}), draw(seed)
    flags = ("--model", model, "--dataset", dataset, "--max_steps", 60, "--eval_steps", 10, "--save_steps", 10)
    flags = (*flags, "--max_eval_samples", 32, "--resume_from_checkpoint", "auto", "--output_dir")
    started = time.monotonic()
    assert finish(start((*flags, folder / "unbroken")), seconds=900) == 0
    lasted, done = time.monotonic() - started, 0
    while done < kills:
        process = start((*flags, folder / "killed", "--dataloader_num_workers", rng.choice([0, 2])))
        process.join(rng.uniform(0.15, 0.3) * lasted)
        if process.exitcode is not None:
            break
        kill_group(process)
        process.join()
        done += 1
    assert finish(start((*flags, folder / "killed")), seconds=900) == 0
    report.check(outcome(folder / "unbroken") == outcome(folder / "killed"), f"after {done} kills the bits differ")
    report.facts["kills"] = done
    return report
