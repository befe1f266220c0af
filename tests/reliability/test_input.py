from tests.reliability.folders import hostile_folders
from tests.reliability.fuzz import fuzz
from tests.reliability.hostile import hostile_checkpoints
from tests.reliability.pictures import odd_images
from tests.reliability.reference import schedules_and_windows


def test_five_hundred_command_lines_that_nobody_meant(tmp_path):
    report = fuzz(tmp_path, trials=500, seed=7)
    print(report)
    assert not report.failures, report.failures[:5]


def test_nothing_in_a_hostile_checkpoint_runs(tmp_path):
    report = hostile_checkpoints(tmp_path)
    print(report)
    assert report.trials >= 20 and not report.failures, report.failures


def test_nothing_in_a_hostile_run_folder_runs_or_writes_elsewhere(tmp_path):
    report = hostile_folders(tmp_path)
    print(report)
    assert report.trials >= 100 and not report.failures, "\n".join(report.failures)


def test_odd_images_are_judged_as_expected(tmp_path):
    report = odd_images(rounds=5, seed=11)
    print(report)
    assert report.trials >= 200 and not report.failures, report.failures[:5]


def test_any_window_and_schedule_is_that_of_a_float64_reference():
    report = schedules_and_windows(trials=60, seed=13)
    print(report)
    assert not report.failures, report.failures[:5]
