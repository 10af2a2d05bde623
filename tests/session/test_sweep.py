import json
import re
import signal

import pytest
from run_dirs import checkpoint_files

from fedmef_dist import config
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.strict_yaml import parse_yaml
from fedmef_dist.cli import app
from fedmef_dist.config import to_tree
from fedmef_dist.runs.directory import write_configuration
from fedmef_dist.session import sweep as module
from fedmef_dist.session.sweep import load_sweep, run_cell, run_sweep, show_cells

CONFIG = """
name: tiny
data: {dataset: digits, partition: {scheme: iid}}
model: {name: cnn, width: 0.25, hidden: 0}
federation: {clients: 20, clients_per_round: 2, rounds: 2, local_epochs: 1}
method: {name: fedavg}
tracking: {console: false, wandb: {mode: disabled}}
"""


@pytest.fixture
def write(tmp_path):
    """Writes a grid file beside a configuration; returns its path."""
    (tmp_path / "config.yaml").write_text(CONFIG)

    def grid(text, runs=tmp_path / "runs"):
        path = tmp_path / "grid.yaml"
        path.write_text(f"config: config.yaml\nruns: {runs}\ngrid: {text}\n")
        return path

    return grid


def names(sweep):
    return [cell.run_dir.name for cell in sweep.cells]


def test_the_first_key_varies_slowest_and_names_come_from_the_values(write):
    sweep = load_sweep(write("{method.name: [fedavg, fedmef], optimizer.lr: [0.1, 1e-3], data.augment: [true]}"))
    assert names(sweep) == [
        "name-fedavg_lr-0.1_augment-true",
        "name-fedavg_lr-0.001_augment-true",
        "name-fedmef_lr-0.1_augment-true",
        "name-fedmef_lr-0.001_augment-true",
    ]
    assert [cell.number for cell in sweep.cells] == [0, 1, 2, 3]
    assert sweep.cells[3].overrides == (
        "name=name-fedmef_lr-0.001_augment-true",
        'method.name="fedmef"',
        "optimizer.lr=0.001",
        "data.augment=true",
    )


def test_several_grids_stand_one_behind_the_other(write):
    sweep = load_sweep(write("[{method.name: [fedmef], method.density: [0.2, 0.4], seed: [0]}, {seed: [0, 1]}]"))
    assert names(sweep) == ["name-fedmef_density-0.2_seed-0", "name-fedmef_density-0.4_seed-0", "seed-0", "seed-1"]
    assert [cell.number for cell in sweep.cells] == [0, 1, 2, 3]
    assert sweep.cells[3].overrides == ("name=seed-1", "seed=1")


def test_keys_that_end_alike_are_written_out(write):
    assert names(load_sweep(write("{method.name: [fedavg], model.name: [cnn]}"))) == [
        "method.name-fedavg_model.name-cnn"
    ]


def test_a_value_cannot_leave_the_folder_of_runs(write):
    assert names(load_sweep(write("{data.root: ['../a b/c']}"))) == ["root-..-a-b-c"]


def test_the_configuration_is_found_beside_the_grid_and_the_grids_values_win(write):
    sweep = load_sweep(write("{seed: [5, 6]}"), ["seed=1", "federation.rounds=7"])
    assert sweep.state(sweep.cells[0]) == (0, 7)
    assert sweep.cells[1].overrides == ("name=seed-6", "seed=1", "federation.rounds=7", "seed=6")


def finish(sweep, cell, **summary):
    """What a finished run of the cell leaves, as far as a sweep looks at it."""
    cell.run_dir.mkdir(parents=True, exist_ok=True)
    write_configuration(cell.run_dir, to_tree(sweep.config.with_overrides(cell.overrides)[0]))
    (cell.run_dir / "summary.json").write_text(json.dumps(summary))


def test_how_far_a_cell_is(write, capsys):
    sweep = load_sweep(write("{seed: [0, 1, 2, 3]}"))
    _, started, _, unclosed = (cell.run_dir for cell in sweep.cells)
    for run_dir in (started, unclosed):
        run_dir.mkdir(parents=True)
    checkpoint_files(started, 1, {})
    finish(sweep, sweep.cells[2], rounds=2)
    checkpoint_files(unclosed, 2, {})
    show_cells(sweep)
    states = [re.split(r"\s{2,}", line.strip())[2] for line in capsys.readouterr().out.splitlines()]
    assert states == ["not started", "1 of 2 rounds", "finished", "1 of 2 rounds"]


def test_more_rounds_make_a_finished_cell_unfinished(write):
    sweep = load_sweep(write("{seed: [0]}"), ["federation.rounds=3"])
    sweep.cells[0].run_dir.mkdir(parents=True)
    (sweep.cells[0].run_dir / "summary.json").write_text(json.dumps({"rounds": 2}))
    assert sweep.state(sweep.cells[0]) == (2, 3)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rounds": null}'])
def test_a_damaged_summary_is_named(write, text):
    sweep = load_sweep(write("{seed: [0]}"))
    sweep.cells[0].run_dir.mkdir(parents=True)
    (sweep.cells[0].run_dir / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"is not what a run writes: .*\nwhere: .*summary.json\nmend: delete it"):
        sweep.state(sweep.cells[0])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "grid: Dictionary should have at least 1 item"),
        ("{seed: 1}", "grid.seed: Input should be a valid list"),
        ("{seed: []}", "a key of the grid has no values"),
        ("{seed: [[1]]}", "grid.seed.0 is [1]"),
        ("{seed: [1, 1]}", "two cells have the run directory seed-1"),
        ("{'': [1]}", "'' is no key of a configuration"),
        ("{seed=3: [1]}", "'seed=3' is no key of a configuration"),
        (
            f"{{seed: [1], data.root: [a, {'x' * 300}]}}",
            "the run directory of cell 1 would have a name of 312 characters",
        ),
        ("{data.root: ['a/b', 'a:b']}", "two cells have the run directory root-a-b"),
        ("{seed: [1]}\nextra: 1", "extra: Extra inputs are not permitted"),
        ("[]", "grid: List should have at least 1 item"),
        ("[{seed: [1]}, {}]", "grid.1: Dictionary should have at least 1 item"),
        ("[{seed: [1]}, {seed: [[1]]}]", "grid.1.seed.0 is [1]"),
        ("{seed: [.nan]}", "grid.seed.0 is nan"),
        ("[{seed: [1]}, {seed: []}]", "a key of the grid has no values"),
        ("[{seed: [1]}, {seed: [1, 2]}]", "two cells have the run directory seed-1"),
    ],
)
def test_a_grid_that_is_none_is_refused(write, text, problem):
    path = write(text)
    with pytest.raises(UserError, match=f"^{re.escape(problem)}.*\nwhere: {path}\nmend: "):
        load_sweep(path)


def test_a_missing_grid_file_is_refused(tmp_path):
    (tmp_path / "list.yaml").write_text("- config: config.yaml\n  runs: r\n")
    with pytest.raises(UserError, match="a grid is a mapping of keys, and this is a list"):
        load_sweep(tmp_path / "list.yaml")
    with pytest.raises(UserError, match="cannot read the grid: No such file"):
        load_sweep(tmp_path / "none.yaml")


@pytest.mark.parametrize("number", [-1, 2])
def test_a_cell_that_does_not_exist_is_refused(write, number):
    with pytest.raises(UserError, match=f"there is no cell {number}\n.*which has 2 cells\nmend: give --cell 0 to 1"):
        run_cell(load_sweep(write("{seed: [0, 1]}")), number)


def test_several_ranks_run_one_cell_only(write, monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match="only one cell"):
        run_sweep(load_sweep(write("{seed: [0]}")), [], 1)


@pytest.mark.parametrize(
    ("statuses", "expected", "started"),
    [
        ([0, 0, 0], 0, 3),
        ([2, 0, 2], 2, 3),
        ([2, 1, 0], 1, 3),
        ([0, 137, 0], 1, 3),
        ([1, 75], 75, 2),
        ([0, 130], 130, 2),
    ],
)
def test_one_cells_failure_does_not_stop_the_rest(write, monkeypatch, capsys, statuses, expected, started):
    calls = []
    monkeypatch.setattr(
        module, "run_ranks", lambda arguments, ranks: calls.append(arguments) or statuses[len(calls) - 1]
    )
    path = write("{seed: [0, 1, 2]}")
    assert run_sweep(load_sweep(path, ["seed=9"]), ["seed=9"], 1) == expected
    assert calls == [["sweep", str(path), "seed=9", "--cell", str(number)] for number in range(started)]
    shown = capsys.readouterr().err.splitlines()
    if expected < 75:
        assert [line.split(" failed")[0] for line in shown] == [f"cell {i}" for i, s in enumerate(statuses) if s]


@pytest.mark.parametrize(
    ("grid", "what"),
    [
        ("{federation.clients_per_round: [2, 21, 22]}", "cell 1: federation: clients_per_round is 21"),
        ("{seed: [0, x]}", "cell 1: seed: must be a whole number, got 'x'"),
        ("{optimizer.rate: [0.1]}", "cell 0: unknown key optimizer.rate"),
        ("{method.name: [fedavg, none]}", "cell 1: method"),
    ],
)
def test_every_cell_is_checked_before_the_first_one_starts(write, monkeypatch, grid, what):
    monkeypatch.setattr(module, "run_ranks", lambda *arguments: pytest.fail("started"))
    with pytest.raises(UserError) as caught:
        run_sweep(load_sweep(write(grid)), [], 1)
    assert caught.value.what.startswith(what)
    assert caught.value.what.endswith("(and 1 more of 3 cells)") == ("22" in grid)
    assert caught.value.where.startswith(str(write(grid).parent / "config.yaml"))
    assert caught.value.mend


@pytest.mark.parametrize("key", ["model.name", "data.dataset"])
def test_guests_that_cannot_be_had_are_found_before_the_first_cell_starts(write, monkeypatch, key):
    monkeypatch.setattr(module, "run_ranks", lambda *arguments: pytest.fail("started"))
    with pytest.raises(UserError, match=rf"^cell 1: there is no module nowhere\nwhere: {key}=nowhere:Net"):
        run_sweep(load_sweep(write(f"{{{key}: [{'cnn' if key == 'model.name' else 'digits'}, nowhere:Net]}}")), [], 1)


def test_another_configurations_run_in_a_cells_directory_is_found_before_the_first_one_starts(write, monkeypatch):
    monkeypatch.setattr(module, "run_ranks", lambda *arguments: pytest.fail("started"))
    sweep = load_sweep(write("{seed: [0, 1]}"))
    sweep.cells[1].run_dir.mkdir(parents=True)
    write_configuration(sweep.cells[1].run_dir, to_tree(sweep.config.with_overrides(["optimizer.lr=0.5"])[0]))
    with pytest.raises(UserError, match=r"^cell 1: the directory holds another configuration's run; different: opt"):
        run_sweep(sweep, [], 1)


def test_the_list_goes_on_behind_a_wrong_cell(write, capsys):
    sweep = load_sweep(write('{federation.clients_per_round: [2, 21, 3], "seed": [0, "a\\e[2J"]}'))
    assert show_cells(sweep) == 2
    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["0", "1", "2", "3", "4", "5"]
    assert [line[2].partition(":")[0] for line in lines] == [
        *["not started", "wrong"],
        *["wrong"] * 2,
        *["not started", "wrong"],
    ]
    assert lines[2][2].startswith("wrong: federation: clients_per_round is 21 but there are only 20 clients")
    assert not any("\x1b" in part for line in lines for part in line)


def test_a_list_without_a_wrong_cell_ends_with_zero(write):
    assert show_cells(load_sweep(write("{seed: [0, 1]}"))) == 0


def test_the_base_file_is_read_once_however_many_cells_there_are(write, monkeypatch, capsys):
    sweep = load_sweep(write(f"{{seed: {list(range(200))}, optimizer.lr: [0.1, 0.2]}}"))
    sweep.config.path.unlink()
    parsed = []
    monkeypatch.setattr(config, "parse_yaml", lambda text, where: parsed.append(text) or parse_yaml(text, where))
    show_cells(sweep)
    assert capsys.readouterr().out.count("not started") == 400
    assert len(parsed) <= 400 + 200 + 2  # each override once: names, seeds, rates


def test_a_grid_beyond_reason_is_refused_at_once(write):
    values = list(range(1001))
    with pytest.raises(UserError, match=r"the grid has 1,002,001 cells\n.*\nmend: divide it: 1,000,000 are the most"):
        load_sweep(write(f"{{seed: {values}, federation.rounds: {values}}}"))


def test_a_folder_of_runs_with_control_characters_is_refused(write):
    with pytest.raises(UserError, match="a path must not hold line breaks"):
        load_sweep(write("{seed: [0]}", runs='"a\\nb"'))


@pytest.mark.parametrize(("cell", "expected"), [(0, 75), (2, 0)])
def test_a_signal_that_comes_as_a_cell_ends_stops_the_sweep_behind_it(write, monkeypatch, cell, expected):
    started = []

    def run_ranks(arguments, ranks):
        started.append(int(arguments[-1]))
        if started[-1] == cell:
            signal.raise_signal(signal.SIGUSR2)
        return 0

    monkeypatch.setattr(module, "run_ranks", run_ranks)
    assert run_sweep(load_sweep(write("{seed: [0, 1, 2]}")), [], 1) == expected
    assert started == list(range(cell + 1))


def test_ranks_that_talk_through_mpi_are_started_by_mpirun(write, monkeypatch):
    started = []
    monkeypatch.setattr(module, "find_mpirun", lambda where: ("mpirun", "--bind-to", "core"))
    monkeypatch.setattr(module, "run_under", lambda mpirun, arguments, ranks: started.append((mpirun, ranks)) or 0)
    monkeypatch.setattr(module, "run_ranks", lambda arguments, ranks: started.append(ranks) or 0)
    sweep = load_sweep(write("{runtime.backend: [gloo, mpi]}"))
    assert run_sweep(sweep, [], 2) == run_sweep(sweep, [], 1) == 0
    assert started == [2, (("mpirun", "--bind-to", "core"), 2), 1, 1]


@pytest.mark.cluster
def test_a_sweep_runs_its_cells_and_a_second_one_finds_them_finished(write, capfd):
    path = write("{federation.clients: [20, 200]}")
    with pytest.raises(SystemExit) as left:
        app(["sweep", str(path), "--ranks", "2"], standalone_mode=True)
    assert left.value.code == 2
    shown = capfd.readouterr()
    assert "200 clients with at least 10 samples each need" in shown.err
    assert "cell 1 failed with exit status 2" in shown.err
    assert "1 of 2 cells are finished" in shown.out
    run_dir = load_sweep(path).cells[0].run_dir
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["rounds"], summary["world_size"]) == (2, 2)
    run_cell(load_sweep(path), 0)
    assert capfd.readouterr().out == f"finished before: {run_dir}\n"


def test_a_run_that_a_callback_stopped_is_finished(write):
    sweep = load_sweep(write("{seed: [0]}"))
    (cell,) = sweep.cells
    cell.run_dir.mkdir(parents=True)
    (cell.run_dir / "summary.json").write_text('{"rounds": 1}')
    done, wanted = sweep.state(cell)
    assert done == 1 < wanted
    finish(sweep, cell, rounds=1, stopped="enough")
    assert sweep.state(cell) == (1, 1)


def test_a_finished_run_of_another_configuration_is_not_the_cells(write, capsys):
    path = write("{seed: [0, 1]}")
    for cell in load_sweep(path).cells:
        finish(load_sweep(path), cell, rounds=2)
    changed = load_sweep(path, ["optimizer.lr=0.7"])
    for ask in (changed.check, lambda: run_sweep(changed, [], 1), lambda: run_cell(changed, 1)):
        with pytest.raises(UserError, match=r"holds another configuration's run; different: optimizer\.lr"):
            ask()
    assert show_cells(changed) == 2
    assert show_cells(load_sweep(path, ["federation.rounds=1", "tracking.console=false"])) == 0


def test_what_another_version_has_more_of_is_no_difference(write):
    sweep = load_sweep(write("{seed: [0]}"))
    (cell,) = sweep.cells
    finish(sweep, cell, rounds=2)
    tree = to_tree(sweep.config.with_overrides(cell.overrides)[0])
    del tree["optimizer"]["momentum"]
    write_configuration(cell.run_dir, tree | {"of_old": {"key": 1}})
    assert sweep.is_finished(cell)


def test_a_sweep_starts_no_process_for_a_finished_cell(write, monkeypatch, capsys):
    sweep = load_sweep(write("{seed: [0, 1]}"))
    finish(sweep, sweep.cells[0], rounds=2)
    started = []
    monkeypatch.setattr(module, "run_ranks", lambda arguments, ranks: started.append(arguments[-1]) or 0)
    assert run_sweep(sweep, [], 1) == 0
    assert started == ["1"]
    assert f"finished before: {sweep.cells[0].run_dir}" in capsys.readouterr().out


def test_cells_that_differ_only_in_their_seed_share_a_group(tmp_path):
    (tmp_path / "base.yaml").write_text("method: {name: fedavg}\n")
    (tmp_path / "grid.yaml").write_text(
        "config: base.yaml\nruns: runs/study\ngrid: {optimizer.lr: [0.1, 0.2], seed: [0, 1]}\n"
    )
    cells = load_sweep(tmp_path / "grid.yaml").cells
    assert [cell.group for cell in cells] == ["study/lr-0.1", "study/lr-0.1", "study/lr-0.2", "study/lr-0.2"]
    (tmp_path / "grid.yaml").write_text("config: base.yaml\nruns: runs/study\ngrid: {seed: [0, 1]}\n")
    assert {cell.group for cell in load_sweep(tmp_path / "grid.yaml").cells} == {"study"}
