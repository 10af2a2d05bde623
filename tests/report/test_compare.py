import csv
import subprocess
import sys

import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.report import compare


def test_one_run_is_reported_inside_its_own_directory(make_run, capsys):
    directory = make_run("quickstart")
    compare([directory], None)
    printed = capsys.readouterr().out
    assert {file.name for file in (directory / "report").iterdir()} == {
        *("report.html", "compare.md", "compare.csv", "metrics.csv", "costs.png", "memory.png"),
        *("accuracy_rounds.png", "accuracy_wire.png", "accuracy_flops.png"),
    }
    assert "90.00" in printed
    assert "costs.png" in printed
    assert "\x1b[" not in printed


def test_several_runs_are_reported_where_the_user_stands_or_says(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [make_run("a"), make_run("b", "fedavg")]
    compare(runs, None)
    assert (tmp_path / "report" / "compare.md").exists()
    compare(runs, tmp_path / "deep" / "out")
    assert (tmp_path / "deep" / "out" / "compare.csv").read_text().count("\n") == 3


def test_the_tables_are_on_the_terminal_and_in_the_file(make_run, tmp_path, capsys):
    compare([make_run("a[b]", accuracies=(0.5, 0.9))], tmp_path, target=0.9)
    printed, written = capsys.readouterr().out, (tmp_path / "compare.md").read_text()
    assert "a[b]" in printed
    assert "a\\[b\\]" in written
    for text in (printed, written):
        assert text.index("Accuracy") < text.index("Communication") < text.index("Memory") < text.index("To reach 90 %")
        assert "1 of 1" in text
    assert written.count("\n## ") == 3 + 5
    for name in ("accuracy_rounds.png", "costs.png"):
        assert f"]({name})" in written


def test_a_run_that_is_a_copy_of_another_is_marked(make_run, tmp_path, capsys):
    runs = [make_run("a", **{"model/digest": "1f"}), make_run("copy", **{"model/digest": "1f"})]
    runs += [make_run("c", seed=1, **{"model/digest": "1f"}), make_run("d", **{"model/digest": "2f"}), make_run("e")]
    compare(runs, tmp_path / "out")
    told = f"note: {runs[1]} has the seed and the weights of {runs[0]}, but counts as a seed of its own\n"
    assert capsys.readouterr().err == told


def test_all_metrics_lie_in_one_table(make_run, tmp_path):
    compare([make_run("a", logged={2: {"x": "=1+1"}}), make_run("b", "fedavg", seed=1)], tmp_path / "out")
    with (tmp_path / "out" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["seed"], row["round"]) for row in rows[3:5]] == [("a", "0", "4"), ("b", "1", "1")]
    assert [row["eval/accuracy"] for row in rows[:4]] == ["", "0.5", "", "0.9"]
    assert (rows[1]["x"], rows[5]["x"]) == ("'=1+1", "")  # no spreadsheet takes it for a formula


@pytest.mark.parametrize("option", ["--target=75", "--target=-0.5", "--baseline=nobody"])
def test_a_target_that_is_no_share_and_a_baseline_that_is_no_group_end_with_status_2(make_run, tmp_path, option):
    command = [sys.executable, "-m", "fedmef_dist", "compare", str(make_run("a")), option]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert option.partition("=")[0] in done.stderr
    assert len(done.stderr.splitlines()) == 3
    assert not (tmp_path / "a" / "report").exists()


def test_wrong_requests_are_refused(make_run, tmp_path):
    directory = make_run("a")
    with pytest.raises(UserError, match="no run directory"):
        compare([], None)
    with pytest.raises(UserError, match="twice"):
        compare([directory, directory / ".." / "a"], None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        compare([directory], tmp_path / "file")


def test_runs_that_cannot_be_looked_at_are_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for name in ("loop", 300 * "a"):
        with pytest.raises(UserError, match="the run directory cannot be read: "):
            compare([tmp_path / name], tmp_path / "out")


def test_importing_the_report_loads_nothing_heavy():
    code = (
        "import sys, fedmef_dist.report; sys.exit(bool({'matplotlib', 'pandas', 'torch', 'jinja2'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
