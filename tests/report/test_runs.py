import os
import re
import sys

import pytest

import fedmef_dist
from fedmef_dist.base.errors import UserError
from fedmef_dist.report.runs import read_run


def test_a_value_comes_from_the_summary_else_from_the_newest_round_that_has_it(make_run):
    logged = {2: {"memory/device_bytes": 7}, 3: {"memory/device_bytes": 8}}
    assert read_run(make_run("a", logged=logged)).value("memory/device_bytes") == 2_500_000
    older = read_run(make_run("b", logged=logged, **{"memory/device_bytes": None, "wire/total_bytes": None}))
    assert older.value("memory/device_bytes") == 8
    assert older.value("wire/total_bytes") == 2e6  # of all four rounds
    assert read_run(make_run("c")).value("eval/perplexity_last") is None


def test_a_total_adds_up_the_rounds(make_run):
    run = read_run(make_run("a", wire=2e6, logged={1: {"only/once": 3}}))
    assert run.total("wire/up_bytes") == pytest.approx(0.8e6)  # 0.4 of 2 MB
    assert run.total("only/once") == 3
    assert run.total("unknown") is None


def test_the_metrics_are_columns_and_a_data_frame(make_run):
    run = fedmef_dist.read_run(str(make_run("a", logged={2: {"x": "text"}})))
    assert run.columns["round"] == [1, 2, 3, 4]
    assert run.columns["eval/accuracy"] == [None, 0.5, None, 0.9]
    assert run.columns["x"] == [None, "text", None, None]
    frame = run.to_pandas()
    assert frame.index.name == "round"
    assert frame["eval/accuracy"].dropna().to_dict() == {2: 0.5, 4: 0.9}
    assert frame["wire/up_bytes"].sum() == pytest.approx(run.total("wire/up_bytes"))


def test_without_pandas_the_user_is_told(make_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pandas is not installed"):
        read_run(make_run("a")).to_pandas()


def test_a_run_that_goes_on_can_be_read(make_run):
    directory = make_run("a")
    (directory / "summary.json").unlink()
    lines = (directory / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:9])
    run = read_run(directory, unfinished=True)
    assert run.columns["round"] == [1, 2]
    assert run.summary == {}
    (directory / "metrics.jsonl").write_bytes(b"".join(lines[1:]))
    with pytest.raises(UserError, match="round 1 is missing"):
        read_run(directory, unfinished=True)


def test_a_run_that_a_callback_stopped_has_finished(make_run):
    directory = make_run("a", stopped="no better for 10 tests")
    configuration = directory / "config.yaml"
    configuration.write_text(configuration.read_text().replace("rounds: 4", "rounds: 40"))
    assert len(read_run(directory).metrics) == 4


def test_a_missing_directory_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="there is no run directory"):
        read_run(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "summary.json"])
def test_a_missing_file_is_the_users_error(make_run, name):
    directory = make_run("a")
    (directory / name).unlink()
    with pytest.raises(UserError, match=f"there is no {name} in "):
        read_run(directory)


DEEP = "a: " + "{b: " * 60 + "1" + "}" * 60 + "\nmethod: {name: x}\nfederation: {rounds: 4}\n"
BOMB = "a: &a [1, 1]\nb: &b [*a, *a]\nmethod: {name: x}\n"
PLAIN = "method: {name: x}\nfederation: {rounds: 4}\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", "a: [1", "not valid YAML"),
        ("config.yaml", "name: a", "config.yaml is not what a run writes: method: Field required"),
        ("config.yaml", "method: fedmef", "config.yaml is not what a run writes: method"),
        ("config.yaml", "method: {name: 3}", "config.yaml is not what a run writes: method.name"),
        ("config.yaml", "[1]", "a configuration is a mapping"),
        ("config.yaml", PLAIN + "seed: [1]\n", "config.yaml is not what a run writes: seed"),
        ("config.yaml", DEEP, "config.yaml is not what a run writes: too deep"),
        ("config.yaml", BOMB, "anchors, aliases and tags are not allowed"),
        ("config.yaml", PLAIN + "1: 2\n", "config.yaml is not what a run writes"),
        ("config.yaml", PLAIN + "when: 2020-01-01\n", "config.yaml is not what a run writes: when"),
        ("config.yaml", b"\xff\xfe", "not UTF-8 text"),
        ("config.yaml", "#" * 300_000, "larger than 262144 bytes"),
        ("metrics.jsonl", '{"round": 1}\n{"rou', "rounds 2 to 4 are missing"),
        ("metrics.jsonl", "", "metrics.jsonl has no rounds"),
        ("metrics.jsonl", "[1]\n", "this is not a line of metrics: .*line 1"),
        ("metrics.jsonl", '{"round": 1}\n{"round": 3}\n', "round 2 is missing before it.*line 2"),
        ("metrics.jsonl", '{"round": 1}\n{"round": 1}\n', "round 1 stands twice.*line 2"),
        ("metrics.jsonl", '{"round": 1, "eval/accuracy": "high"}\n', "'eval/accuracy' is not a number.*line 1"),
        ("metrics.jsonl", '{"round": 1, "eval/accuracy": 2}\n', "'eval/accuracy' is not between 0 and 1.*line 1"),
        ("metrics.jsonl", '{"round": 1, "device/seconds": "long"}\n', "'device/seconds' is not a number.*line 1"),
        ("metrics.jsonl", '{"round": 1, "flops/total": NaN}\n', "neither a finite number nor a text.*line 1"),
        ("metrics.jsonl", '{"round": 1, "flops/total": 1' + "0" * 400 + "}\n", "neither a finite number.*line 1"),
        ("metrics.jsonl", '{"round": 1, "a": ' + "[" * 100_000 + "}\n", "line 1"),
        ("metrics.jsonl", b'{"round": 1, "a": "\xff"}\n', "line 1"),
        ("summary.json", "{", "summary.json is not what a run writes"),
        ("summary.json", "[]", "summary.json is not what a run writes"),
        ("summary.json", '{"rounds": true}', "it has no rounds"),
        ("summary.json", '{"rounds": 4, "flops/total": []}', "'flops/total' is not a number"),
        ("summary.json", '{"rounds": 4, "world_size": "two"}', "'world_size' is not a whole number"),
        ("summary.json", '{"rounds": 4, "model/digest": {}}', "'model/digest' is not a text"),
        ("summary.json", '{"rounds": 4, "flops/total": 1e999}', "'flops/total' is not a finite number"),
        ("summary.json", '{"a": ' * 100_000, "summary.json is not what a run writes"),
        ("summary.json", '{"rounds": 4, "flops/total": 1}', "summary.json and metrics.jsonl are not of one run"),
    ],
)
def test_a_damaged_file_is_the_users_error_and_named(make_run, name, text, message):
    directory = make_run("a")
    (directory / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_run(directory)
    shown = str(error.value)
    assert re.search(message, shown, re.DOTALL), shown
    assert str(directory) in shown
    assert len(shown.splitlines()) <= 3


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "summary.json"])
@pytest.mark.parametrize(
    ("lay", "message"),
    [
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "a link"),
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "a link"),
    ],
    ids=["FIFO", "device", "directory", "dangling link"],
)
def test_what_is_no_regular_file_is_named_at_once(make_run, name, lay, message):
    directory = make_run("a")
    (directory / name).unlink()
    lay(directory / name)
    with pytest.raises(UserError, match=message):
        read_run(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"settings": {"federation": {"rounds": 6}}},
            "holds no finished run: 4 of 6 rounds, 4 of them in",
        ),
        ({"rounds": 3, "metrics/lines": 3}, "do not have the SHA-256 that summary.json holds"),
        ({"metrics/digest": "0" * 64}, "do not have the SHA-256 that summary.json holds"),
        ({"eval/accuracy_last": 0.8}, "eval/accuracy_last is 0.8, but 0.9"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(make_run, changes, message):
    with pytest.raises(UserError, match=message):
        read_run(make_run("a", **changes))


def test_what_a_method_of_a_guest_measures_need_be_no_share(make_run):
    logged = {
        2: {"eval/accuracy_gain": -0.1, "sparsity/density_ratio": 3.0, "own/form": "even", "device/kind": "phone"}
    }
    assert read_run(make_run("a", logged=logged)).columns["eval/accuracy_gain"] == [None, -0.1, None, None]


def test_a_changed_number_is_refused(make_run):
    directory = make_run("a")
    path = directory / "metrics.jsonl"
    path.write_text(path.read_text().replace('"eval/accuracy": 0.5', '"eval/accuracy": 0.6'))
    with pytest.raises(UserError, match="lines were changed after they were written"):
        read_run(directory)


def test_half_a_line_behind_the_last_round_is_named(make_run):
    directory = make_run("a")
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"rou')
    with pytest.raises(UserError, match=r"half a line follows round 4\nwhere: .*, line 5"):
        read_run(directory)


def test_a_run_of_an_earlier_version_is_marked(make_run, capsys):
    directory = make_run("a", **{"metrics/lines": None, "metrics/digest": None})
    assert read_run(directory).value("eval/accuracy_last") == 0.9
    assert capsys.readouterr().err == f"note: {directory} is of an earlier version; nothing vouches for its metrics\n"


def test_what_a_configuration_names_is_not_imported(make_run, tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    directory = make_run("a", method="stranger:Method", settings={"data": {"dataset": "stranger:Data"}})
    assert read_run(directory).config["method"]["name"] == "stranger:Method"
    assert "stranger" not in sys.modules


def test_a_run_is_shown_by_its_directory_alone(make_run):
    run = read_run(make_run("a"))
    assert repr(run) == f"Run(path={run.path!r})"
