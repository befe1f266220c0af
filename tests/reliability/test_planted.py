"""R20: the tests tested. Each bug is planted from outside and must turn its check red, which is green without it."""

import math
from types import SimpleNamespace

import pytest
from torch.nn.functional import cross_entropy

from data.loading.loader import PlannedSampler
from tests.reliability.flips import flip_bits
from tests.reliability.harness import RUN, outcome
from tests.reliability.pictures import odd_images
from tests.reliability.power import power_cuts
from tests.reliability.reference import schedules_and_windows
from tests.reliability.small import small_state
from tests.reliability.small import train as train_small
from tests.running import run_here
from train.checkpoint.folder import CheckpointFolder
from train.checkpoint.manifest import verify
from train.checkpoint.snapshot import restore
from train.optimizers.schedules import Schedule

# -- the checks --------------------------------------------------------------------------------------------


def resume_is_exact(folder):
    """A run stopped in the middle of an epoch and of a logging window equals one that was not."""
    flags = (*RUN, "--max_steps", 14, "--metric_for_best_model", "accuracy")  # ties, of which the first is best
    assert run_here(*flags, "--output_dir", folder / "unbroken") == 0
    assert run_here(*flags, "--output_dir", folder / "broken", "--stop_after", 7) == 0
    again = ("--output_dir", folder / "broken", "--resume_from_checkpoint", "auto", "--dataloader_num_workers", 1)
    code = run_here(*again)
    return code == 0 and outcome(folder / "unbroken") == outcome(folder / "broken")


def evaluation_counts_each_image_once(folder):
    """Metrics do not depend on the batch size."""
    from tests.train.test_evaluate import metrics_at

    one, seven = metrics_at(1, samples=10), metrics_at(7, samples=10)
    return one.confusion == seven.confusion and math.isclose(one.values["loss"], seven.values["loss"], abs_tol=1e-6)


def windows_are_exact(folder):
    """Losses under accumulation and schedule are those of a float64 reference."""
    return not schedules_and_windows(15, 3).failures


def an_overflow_is_skipped(folder):
    """The scaler's skip is seen as one."""
    from tests.train.test_loop import test_an_fp16_overflow_moves_neither_weights_nor_schedule

    test_an_fp16_overflow_moves_neither_weights_nor_schedule()
    return True


def a_nan_stops_the_run(folder):
    """Before the weights change."""
    from tests.train.test_loop import test_a_loss_that_is_no_number_stops_before_the_weights_change

    test_a_loss_that_is_no_number_stops_before_the_weights_change(math.nan)
    return True


def flips_are_noticed(folder):
    """Sixty flipped bits and some more."""
    return not flip_bits(folder, 60, 3).failures


def power_cuts_are_survived(folder):
    """Of five saves."""
    (folder / "recorded").mkdir()
    return not power_cuts(folder, 1500, 3).failures


def the_best_survives_pruning(folder):
    """After every save the best checkpoint is there and sound."""
    state, checkpoints = small_state(), CheckpointFolder(folder, "run1", {}, keep=2)
    state.best.value, state.best.step = 0.1, 1
    for _ in range(4):
        train_small(state)
        checkpoints.save(state, 0)
    verify(folder / "checkpoint-1")
    return True


def odd_images_are_upright_rgb(folder):
    """One of each kind."""
    return not odd_images(1, 3).failures


# -- the bugs ----------------------------------------------------------------------------------------------


def pad_the_last_batch(self):
    for start in range(0, self.samples, self.batch_size):
        yield [(0, min(index, self.samples - 1)) for index in range(start, start + self.batch_size)]


def restore_the_schedule_one_step_further(schedule, document, load=Schedule.load_state_dict):
    load(schedule, document)
    schedule.step()


def restore_but_forget_the_running_loss(state, checkpoint, **options):
    fresh = state.loss_since_log.clone()
    length = restore(state, checkpoint, **options)
    state.loss_since_log = fresh
    return length


def restore_but_forget_the_best(state, checkpoint, **options):
    length = restore(state, checkpoint, **options)
    state.best.value = state.best.step = None
    return length


def restore_but_forget_the_log(state, checkpoint, **options):
    restore(state, checkpoint, **options)
    return 0


def step_that_hides_the_skip(self, optimizer, loss, grad_norm):
    self.scaler.step(optimizer)
    self.scaler.update()
    return True


def functional(cross_entropy):
    """torch.nn.functional as one room sees it, with another cross-entropy."""
    return SimpleNamespace(cross_entropy=lambda logits, labels, reduction: cross_entropy(logits, labels))


MEAN_OF_BATCH = functional(lambda logits, labels: cross_entropy(logits, labels).reshape(1))
MEAN_OF_PIECE = functional(lambda logits, labels: 2 * cross_entropy(logits, labels))

BUGS = {
    "an update's seed is forgotten": (resume_is_exact, "train.loop.torch.manual_seed", lambda seed: None),
    "one step of the schedule too many": (
        resume_is_exact,
        "train.optimizers.schedules.Schedule.load_state_dict",
        restore_the_schedule_one_step_further,
    ),
    "the schedule is not restored": (
        resume_is_exact,
        "train.optimizers.schedules.Schedule.load_state_dict",
        lambda *_: None,
    ),
    "the optimizer is not restored": (resume_is_exact, "train.checkpoint.snapshot.unpack_optimizer", lambda *_: None),
    "the order starts again": (
        resume_is_exact,
        "data.pipeline.PlannedSampler",
        lambda p, start, n: PlannedSampler(p, 0, n),
    ),
    "the order is an update off": (
        resume_is_exact,
        "data.pipeline.PlannedSampler",
        lambda plan, start, skip: PlannedSampler(plan, start + bool(start), skip),
    ),
    "the running loss is forgotten": (
        resume_is_exact,
        "train.checkpoint.resume.restore",
        restore_but_forget_the_running_loss,
    ),
    "the best is forgotten": (resume_is_exact, "train.checkpoint.resume.restore", restore_but_forget_the_best),
    "the log is forgotten": (resume_is_exact, "train.checkpoint.resume.restore", restore_but_forget_the_log),
    "padding is counted": (
        evaluation_counts_each_image_once,
        "data.loading.loader.InOrder.__iter__",
        pad_the_last_batch,
    ),
    "a mean of batch means": (evaluation_counts_each_image_once, "train.evaluate.F", MEAN_OF_BATCH),
    "a window's mean is of its pieces": (windows_are_exact, "train.loss.F", MEAN_OF_PIECE),
    "an epoch's tail is dropped": (windows_are_exact, "data.plan.Plan.micro_batch_count", lambda self, _: 1),
    "an overflow counts as an update": (
        an_overflow_is_skipped,
        "train.precision.Precision.step",
        step_that_hides_the_skip,
    ),
    "nan is let through": (a_nan_stops_the_run, "train.precision.Precision._record", lambda *_: None),
    "digests are not compared": (flips_are_noticed, "data.files.sha256", lambda path: "0"),
    "nothing is flushed": (power_cuts_are_survived, "data.files.flush", lambda path: None),
    "the best is pruned": (
        the_best_survives_pruning,
        "train.checkpoint.folder.beyond_limit",
        lambda s, *_: sorted(s)[:-1],
    ),
    "orientation is ignored": (odd_images_are_upright_rgb, "data.reading.decode._upright", lambda image: image),
    "transparency is cut off": (
        odd_images_are_upright_rgb,
        "data.reading.decode._rgb",
        lambda image: image.convert("RGB"),
    ),
}
CHECKS = sorted({check for check, *_ in BUGS.values()}, key=lambda check: check.__name__)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_check_is_green(check, tmp_path):
    assert check(tmp_path)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_turns_its_check_red(bug, tmp_path, monkeypatch):
    check, target, replacement = BUGS[bug]
    monkeypatch.setattr(target, replacement)
    try:
        green = check(tmp_path)
    except (Exception, pytest.fail.Exception):
        green = False
    assert not green, f"{check.__name__} did not notice"
