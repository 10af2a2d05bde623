import json

import pytest
from tiny import TREE

from fedmef_dist.base.errors import UserError
from fedmef_dist.commands.memory import memory_command


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(TREE))
    return path


def test_the_command_prints_objects_and_draws_bars(file, tmp_path, capsys):
    memory_command(file, ["federation.batch_size=2"], True, tmp_path / "bars.png", 1)
    assert [found["batch_size"] for found in json.loads(capsys.readouterr().out)] == [2] * 11
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_tables_and_one_process_needs_no_mpirun(file, capsys):
    memory_command(file, ["runtime.backend=mpi"], False, None, 1)
    assert "fedmef, p = 0.9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "out", "message"),
    [
        (["method.density=0.001"], None, "density 0.001 cannot be reached"),
        (["model.name=resnet9"], None, "unknown model"),
        ([], "missing/bars.png", "the plot cannot be written"),
        ([], "bars.docx", "the plot cannot be written"),
    ],
)
def test_wrong_input(file, tmp_path, overrides, out, message):
    with pytest.raises(UserError, match=message):
        memory_command(file, overrides, True, out and tmp_path / out, 1)


def test_a_plan_fits_its_budget_and_the_front_goes_down(file, tmp_path, capsys):
    memory_command(file, [], True, None, 1, "1GB")
    roomy = json.loads(capsys.readouterr().out)
    assert set(roomy["layers"].values()) <= {"keep"}
    front = roomy["front"]
    budget = (front[0]["peak"] + front[-1]["peak"]) // 2
    memory_command(file, [], True, tmp_path / "front.png", 1, str(budget))
    found = json.loads(capsys.readouterr().out)
    assert found["peak_bytes"] <= budget
    assert found["predicted_peak_bytes"] == pytest.approx(found["peak_bytes"], rel=0.03)
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_a_plan_as_a_table(file, capsys):
    memory_command(file, [], False, None, 1, "1GB")
    text = capsys.readouterr().out
    assert "Plan for 1 GB" in text
    assert "gradient exact" in text


@pytest.mark.parametrize(("budget", "message"), [("1kB", "no plan fits 0.001 MB"), ("much", "is no size")])
def test_a_budget_that_nothing_meets(file, budget, message):
    with pytest.raises(UserError, match=message) as refusal:
        memory_command(file, [], True, None, 1, budget)
    if budget == "1kB":
        smallest = str(refusal.value).split("give ")[1].split("MB")[0]
        memory_command(file, [], True, None, 1, f"{smallest}MB")
