import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from run_dirs import configured

from fedmef_dist.base.errors import UserError
from fedmef_dist.config import Config, load_config, to_tree
from fedmef_dist.session.sweep import load_sweep
from fedmef_dist.submission.script import Job, common_functions
from fedmef_dist.submission.submit import submit


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: small\nfederation: {clients: 20, clients_per_round: 5, rounds: 3}\n")
    return path


@pytest.fixture
def grid(tmp_path, config):
    path = tmp_path / "grid.yaml"
    path.write_text(
        f"config: {config.name}\nruns: {tmp_path / 'sweep'}\ngrid: {{seed: [1, 2], method.density: [0.5]}}\n"
    )
    return path


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A program in the place of sbatch, which answers as it does; returns a function that sets its answer."""

    def answer(shell):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "sbatch").write_text(f"#!/bin/sh\n{shell}\n")
        (folder / "sbatch").chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    answer("echo Submitted batch job 7")
    return answer


def test_a_dry_run_prints_the_script_and_writes_nothing(config, tmp_path, capsys):
    submit(config, ["seed=3"], Job(nodes=2, time="1:00:00"), run_dir=tmp_path / "run", dry_run=True)
    shown = capsys.readouterr().out
    run_dir = tmp_path / "run"
    assert f"\nfinish ranks run {run_dir}/config.yaml --run-dir {run_dir}\n" in shown
    assert f"\ncommon={run_dir}/slurm/common.sh\n" in shown
    assert '\nsource "$common"\n' in shown
    assert f"PYTHON=${{PYTHON:-{sys.executable}}}" in shown
    assert "#SBATCH --job-name=small" in shown
    assert f"#SBATCH --output={run_dir}/slurm/%j.log" in shown
    assert not run_dir.exists()


def test_the_run_directory_holds_script_functions_and_resolved_configuration(config, sbatch, tmp_path, capsys):
    run_dir = tmp_path / "a run"
    submit(config, ["seed=3"], Job(), run_dir=run_dir, max_restarts=5)
    assert capsys.readouterr().out == f"Submitted batch job 7, script {run_dir}/slurm/job.sbatch\n"
    assert load_config(run_dir / "config.yaml") == load_config(config, ["seed=3"])
    assert (run_dir / "slurm" / "common.sh").read_text() == common_functions()
    script = (run_dir / "slurm" / "job.sbatch").read_text()
    assert "\nMAX_RESTARTS=5\n" in script
    assert f"\ncommon='{run_dir}/slurm/common.sh'\n" in script
    assert f"finish ranks run '{run_dir}/config.yaml' --run-dir '{run_dir}'\n" in script


def test_another_configurations_directory_is_refused_before_anything_is_submitted(config, sbatch, tmp_path):
    configured(tmp_path / "run", to_tree(Config()))
    sbatch("touch $0.called")
    with pytest.raises(UserError, match="another configuration's run"):
        submit(config, [], Job(), run_dir=tmp_path / "run")
    assert not (tmp_path / "bin" / "sbatch.called").exists()
    assert not (tmp_path / "run" / "slurm").exists()


def test_an_array_has_a_job_for_each_cell_and_keeps_grid_and_configuration(config, grid, sbatch, tmp_path):
    submit(config, ["federation.rounds=4"], Job(), grid=grid)
    folder = tmp_path / "sweep" / "slurm"
    script = (folder / "job.sbatch").read_text()
    assert "#SBATCH --array=0-1\n" in script
    (found,) = folder.glob("grid-*.yaml")
    assert f'\nfinish ranks sweep {found} federation.rounds=4 --cell "$SLURM_ARRAY_TASK_ID"\n' in script
    grid.write_text("config: elsewhere.yaml\n")
    kept = load_sweep(found, ["federation.rounds=4"])
    assert [cell.run_dir.name for cell in kept.cells] == ["seed-1_density-0.5", "seed-2_density-0.5"]
    assert {cell.run_dir.parent for cell in kept.cells} == {tmp_path / "sweep"}
    assert kept.config.with_overrides(kept.cells[1].overrides)[0] == load_config(
        config, ["federation.rounds=4", "name=seed-2_density-0.5", "seed=2", "method.density=0.5"]
    )


def test_an_array_that_waits_is_not_changed_by_the_next_one(config, grid, sbatch, tmp_path):
    submit(config, [], Job(), grid=grid)
    script = (tmp_path / "sweep" / "slurm" / "job.sbatch").read_text()  # of which Slurm has a copy
    config.write_text(config.read_text().replace("rounds: 3", "rounds: 5"))
    grid.write_text(grid.read_text().replace("seed: [1, 2]", "seed: [7, 8, 9]"))
    submit(config, [], Job(), grid=grid)
    waiting = load_sweep(Path(shlex.split(script.splitlines()[-1])[3]), [])
    assert [(tree["seed"], tree["federation"]["rounds"]) for tree in configurations(waiting)] == [(1, 3), (2, 3)]


def configurations(sweep):
    return [to_tree(sweep.config.with_overrides(cell.overrides)[0]) for cell in sweep.cells]


@pytest.mark.parametrize("name", ["fashion_mnist_methods", "digits_forms"])
def test_the_cells_of_an_array_are_those_of_its_grid(name, sbatch, tmp_path):
    given = Path(__file__).parents[2] / "configs" / "sweeps" / f"{name}.yaml"
    tree = yaml.safe_load(given.read_text())
    base = (given.parent / tree["config"]).resolve()
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump(tree | {"config": str(base), "runs": str(tmp_path / "sweep")}))
    submit(base, ["seed=7"], Job(), grid=grid)
    (found,) = (tmp_path / "sweep" / "slurm").glob("grid-*.yaml")
    kept = load_sweep(found, ["seed=7"])
    assert configurations(kept) == configurations(load_sweep(grid, ["seed=7"]))


def test_a_grid_of_another_configuration_is_refused(grid, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(to_tree(Config())))
    with pytest.raises(UserError, match=f"not {other}\nwhere: {grid}\nmend: "):
        submit(other, [], Job(), grid=grid, dry_run=True)


def test_without_slurm_there_is_a_way_to_see_the_script(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no sbatch\nwhere: PATH\nmend: .*--dry-run"):
        submit(config, [], Job(), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_sbatch_refuses_is_said_with_its_reason(config, sbatch, tmp_path):
    sbatch(r"printf 'sbatch: error: invalid partition \374\n' >&2; exit 1")
    with pytest.raises(
        UserError, match=r"sbatch refuses the script: sbatch: error: invalid partition .\nwhere: .*job.sbatch"
    ):
        submit(config, [], Job(), run_dir=tmp_path / "run")


def test_a_sweep_folder_that_cannot_be_written_is_refused(config, grid, sbatch, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "slurm").write_text("")
    with pytest.raises(UserError, match=r"the batch script cannot be written: .*\nwhere: .*sweep/slurm\nmend: "):
        submit(config, [], Job(), grid=grid)


@pytest.mark.parametrize("name", ["a\ntouch pwned", "a\rb", "\x1b[2J"])
def test_a_path_that_would_write_into_the_script_is_refused(config, grid, tmp_path, name):
    with pytest.raises(UserError, match="a path must not hold line breaks"):
        submit(config, [], Job(), run_dir=tmp_path / name, dry_run=True)
    tree = yaml.safe_load(grid.read_text())
    grid.write_text(yaml.safe_dump(tree | {"runs": str(tmp_path / name)}))
    with pytest.raises(UserError, match="a path must not hold line breaks"):
        submit(config, [], Job(), grid=grid, dry_run=True)


def test_a_working_directory_that_would_write_into_the_script_is_refused(config, tmp_path, monkeypatch):
    (tmp_path / "a\ntouch pwned").mkdir()
    monkeypatch.chdir(tmp_path / "a\ntouch pwned")
    with pytest.raises(UserError, match="a path must not hold line breaks"):
        submit(config, [], Job(), dry_run=True)


def test_slurm_fills_nothing_into_the_path_of_the_log(config, grid, tmp_path, capsys):
    submit(config, [], Job(), run_dir=tmp_path / "50%a", dry_run=True)
    assert f"#SBATCH --output={tmp_path}/50%%a/slurm/%j.log\n" in capsys.readouterr().out
    tree = yaml.safe_load(grid.read_text())
    grid.write_text(yaml.safe_dump(tree | {"runs": str(tmp_path / "%x")}))
    submit(config, [], Job(), grid=grid, dry_run=True)
    assert f"#SBATCH --output={tmp_path}/%%x/slurm/%A_%a.log\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="Slurm takes no path with a backslash"):
        submit(config, [], Job(), run_dir=tmp_path / "a\\b", dry_run=True)


def test_whatever_a_path_holds_stays_one_word_and_out_of_the_comments(config, tmp_path, sbatch):
    run_dir = tmp_path / 'it\'s "$(touch pwned)" `touch pwned` # ;&|*'
    submit(config, [], Job(), run_dir=run_dir)
    script = run_dir / "slurm" / "job.sbatch"
    comments = [line for line in script.read_text().splitlines() if line.startswith("# ")]
    assert not [line for line in comments if str(tmp_path) in line]
    (run_dir / "slurm" / "common.sh").write_text('finish() { printf "%s\\n" "$@"; }\n')
    done = subprocess.run(["bash", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["ranks", "run", f"{run_dir}/config.yaml", "--run-dir", str(run_dir)]
    assert done.stderr == ""
    assert not (tmp_path / "pwned").exists()


def test_a_job_without_its_functions_says_so(config, tmp_path, sbatch):
    submit(config, [], Job(), run_dir=tmp_path / "run")
    (tmp_path / "run" / "slurm" / "common.sh").unlink()
    done = subprocess.run(["bash", tmp_path / "run" / "slurm" / "job.sbatch"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path}/run/slurm/common.sh cannot be read: submit the run again\n"


def test_a_ready_script_started_elsewhere_says_from_where_to_start_it(tmp_path):
    script = Path(__file__).parents[2] / "slurm" / "single_node.sbatch"
    environment = {"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(["bash", script, "x"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr == (f"{tmp_path}/slurm/common.sh cannot be read: submit from the folder that holds slurm/\n")


def test_every_cell_of_an_array_is_checked_before_anything_is_submitted(config, grid, sbatch, tmp_path):
    sbatch("touch $0.called")
    tree = yaml.safe_load(grid.read_text())
    grid.write_text(yaml.safe_dump(tree | {"grid": {"federation.clients_per_round": [5, 21]}}))
    with pytest.raises(UserError, match="cell 1: federation: clients_per_round is 21"):
        submit(config, [], Job(), grid=grid)
    assert not (tmp_path / "bin" / "sbatch.called").exists()
    assert not (tmp_path / "sweep").exists()
