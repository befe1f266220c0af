from tests.reliability.kills import kill_and_resume, kill_at_every_call


def test_runs_killed_at_random_end_in_the_same_bits(tmp_path):
    report = kill_and_resume(tmp_path, trials=10, seed=20261123)
    print(report)
    assert not report.failures, report.failures


def test_a_kill_at_any_call_of_the_first_save_costs_nothing(tmp_path):
    report = kill_at_every_call(tmp_path, most=40, every=3)
    print(report)
    assert not report.failures and report.trials >= 10, report.failures
