import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.report.compare import compare
from fedmef_dist.report.device_time import SECONDS, Device, parse_device, with_device_seconds
from fedmef_dist.report.runs import read_run

# In a round 4 MB go up and 6 MB down, of 5 clients together, which compute 10 GFLOP.
COSTS = {number: {"flops/train": 1e10} for number in range(1, 5)}


def test_a_round_takes_what_the_mean_client_does(make_run):
    run = read_run(make_run("a", wire=4e7, logged=COSTS | {3: {"flops/train": 1e10, "clients/trained": 0}}))
    found = with_device_seconds(run, parse_device("1e9,2e6,1e6"))
    # 1.2 MB at 2 MB/s, 2 GFLOP at 1 GFLOP/s, 0.8 MB at 1 MB/s: 3.4 s; nobody trained in round 3.
    assert [line[SECONDS] for line in found.metrics] == pytest.approx([3.4, 6.8, 6.8, 10.2])
    assert found.metrics[2][SECONDS] == found.metrics[1][SECONDS]
    assert SECONDS not in run.metrics[0]
    # Slow devices are devices, too.
    assert parse_device("0.5,0.25,1") == Device(0.5, 0.25, 1.0)


def test_a_client_that_was_asked_in_vain_receives_and_no_more(make_run):
    others = {"clients/refused": 1, "clients/dropped": 5, "clients/late": 2, "clients/surplus": 1}
    line = with_device_seconds(
        read_run(make_run("a", wire=4e7, logged={number: {"flops/train": 6e9, **others} for number in range(1, 5)})),
        parse_device("1e9,2e6,1e6"),
    ).metrics[0]
    # 6 MB to 12 clients at 2 MB/s; of 6 of them 6 GFLOP at 1 GFLOP/s, and 4 MB at 1 MB/s.
    assert line[SECONDS] == pytest.approx(0.25 + 1 + 4 / 6)


def test_a_round_that_asked_nobody_takes_nothing(make_run):
    logged = COSTS | {1: {"flops/train": 1e10, "clients/trained": 1, "clients/dropped": -1}}  # as no run writes it
    run = with_device_seconds(read_run(make_run("a", wire=4e7, logged=logged)), parse_device("1e9,2e6,1e6"))
    assert run.metrics[0][SECONDS] == pytest.approx(10 + 4)  # no bytes down


def test_a_run_without_the_numbers_stays_as_it_is(make_run):
    run = read_run(make_run("a"))
    assert with_device_seconds(run, Device(1.0, 1.0, 1.0)) is run


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "1,2,fast", "1,0,1", "1,-1,1", "inf,1,1", "1,nan,1"])
def test_what_is_no_device_is_the_users_error(text):
    with pytest.raises(UserError, match="--device"):
        parse_device(text)


def test_compare_draws_accuracy_over_the_device_time(make_run, tmp_path, capsys):
    compare([make_run("a", wire=4e7, logged=COSTS)], tmp_path / "out", target=0.5, device="1e9,2e6,1e6")
    printed, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
    assert "accuracy_seconds.png" in printed
    assert "Time of a device" in printed
    assert "6.80 s" in printed
    assert "a device&#39;s time" in page or "a device's time" in page
