import pytest

from tests.reliability.power import count_flushes, power_cuts


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recorded").mkdir()
    return tmp_path


def test_no_power_cut_leaves_a_run_without_its_last_checkpoint(folder):
    report = power_cuts(folder, states=2000, seed=3)
    print(report)
    assert report.trials == 2000 and not report.failures, report.failures[:5]


def test_every_flush_is_needed(tmp_path):
    (tmp_path / "count").mkdir()
    flushes = count_flushes(tmp_path / "count")
    unnoticed = []
    for number in range(flushes):
        folder = tmp_path / str(number)
        (folder / "recorded").mkdir(parents=True)
        if not power_cuts(folder, 2000, seed=number, without_flush=number, stop_at_first=True).failures:
            unnoticed.append(number)
    assert flushes > 40 and not unnoticed, f"of {flushes} flushes, the loss of these is not noticed: {unnoticed}"
