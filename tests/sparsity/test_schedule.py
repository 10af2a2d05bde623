import pytest

from fedmef_dist.sparsity.schedule import AdjustmentSchedule


def test_share_falls_along_a_cosine_and_stays_at_0():
    schedule = AdjustmentSchedule(every=10, until=300, rate=0.4)
    assert schedule.share(0) == pytest.approx(0.4)
    assert schedule.share(150) == pytest.approx(0.2)
    assert schedule.share(100) == pytest.approx(0.3)
    assert schedule.share(300) == schedule.share(450) == 0


def test_adjusting_rounds():
    schedule = AdjustmentSchedule(every=10, until=30, rate=0.4)
    assert [r for r in range(60) if schedule.adjusts(r)] == [10, 20]
