import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.report.runs import read_run


def test_a_value_comes_from_the_summary_else_from_the_first_round_that_has_it(make_run):
    logged = {2: {"memory/device_bytes": 7}, 3: {"memory/device_bytes": 8}}
    assert read_run(make_run("a", logged=logged)).value("memory/device_bytes") == 2_500_000
    assert read_run(make_run("b", logged=logged, **{"memory/device_bytes": None})).value("memory/device_bytes") == 7
    assert read_run(make_run("c")).value("eval/perplexity_last") is None


def test_a_total_adds_up_the_rounds(make_run):
    run = read_run(make_run("a", wire=2e6, logged={1: {"only/once": 3}}))
    assert run.total("wire/up_bytes") == pytest.approx(0.8e6)  # 0.4 of 2 MB
    assert run.total("only/once") == 3
    assert run.total("unknown") is None


def test_a_missing_directory_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="there is no run directory"):
        read_run(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "summary.json"])
def test_a_missing_file_is_the_users_error(make_run, name):
    directory = make_run("a")
    (directory / name).unlink()
    with pytest.raises(UserError, match=f"there is no {name}"):
        read_run(directory)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", "a: [1", "cannot be read"),
        ("config.yaml", "name: a", "not what a run writes"),
        ("config.yaml", "method: fedmef", "not what a run writes"),
        ("metrics.jsonl", '{"round": 1}\n{"rou', "cannot be read"),
        ("metrics.jsonl", "", "not what a run writes"),
        ("metrics.jsonl", "[1]\n", "not what a run writes"),
        ("summary.json", "{", "cannot be read"),
        ("summary.json", "[]", "not what a run writes"),
    ],
)
def test_a_damaged_file_is_the_users_error_and_named(make_run, name, text, message):
    directory = make_run("a")
    (directory / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_run(directory)
    assert name in str(error.value)
    assert len(str(error.value).splitlines()) <= 3
