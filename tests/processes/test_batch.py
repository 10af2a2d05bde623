"""Every batch script on a real Slurm: preempted, cancelled, killed, and still the bits of an undisturbed run."""

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from test_digest import CONFIG

from fedmef_dist.config import load_config
from fedmef_dist.runs.verify import verify

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
ROUNDS = 40
SMALL = ["--ntasks-per-node=1", "--cpus-per-task=1", "--time=10:00"]
MPIRUN = f"{sys.prefix}/bin/mpirun"


@pytest.fixture(scope="module")
def batch_config(tmp_path_factory):
    """The run of `test_digest`, long enough to be disturbed."""
    path = tmp_path_factory.mktemp("batch") / "config.yaml"
    path.write_text(CONFIG.replace("rounds: 8", f"rounds: {ROUNDS}"))
    return path


@pytest.fixture(scope="module")
def digest(batch_config, launch, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = launch("single", 1, "-m", "fedmef_dist", "run", batch_config, "--run-dir", run_dir, timeout=150)
    assert done.returncode == 0, done.stderr
    return read(run_dir)["model/digest"]


@pytest.fixture
def send(slurm, tmp_path):
    """Submits slurm/NAME.sbatch with these options and arguments; the job writes to `log`."""

    def start(name, options, *arguments):
        script = [*SMALL, *options, f"--output={tmp_path / 'log'}", ROOT / "slurm" / f"{name}.sbatch"]
        env = {"PYTHON": sys.executable, "MPIRUN": MPIRUN, "PYTHONPATH": str(ROOT)}
        return slurm.submit(script, *arguments, env=env, cwd=ROOT)

    return start


@pytest.fixture
def log(tmp_path):
    return lambda: (tmp_path / "log").read_text()


def read(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def wait_for_round(slurm, run_dir, number):
    deadline = time.monotonic() + 200
    path = run_dir / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < number:
        slurm.check()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_whole_run(run_dir, digest, world_size):
    """Every round once, the undisturbed digest, files that belong together, and what a batch job keeps."""
    verify(run_dir)
    rounds = [json.loads(line)["round"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rounds == list(range(1, ROUNDS + 1))
    assert read(run_dir)["model/digest"] == digest
    assert read(run_dir)["world_size"] == world_size
    assert [path.name for path in sorted((run_dir / "logs").iterdir())] == [
        f"rank-{rank:03d}.log" for rank in range(world_size)
    ]


def test_one_node_preempted_by_a_signal(slurm, send, log, batch_config, digest, tmp_path):
    run_dir = tmp_path / "run"
    job = send("single_node", ["--ntasks-per-node=2"], batch_config, "--run-dir", run_dir)
    wait_for_round(slurm, run_dir, 2)
    assert slurm.run(["scancel", "--signal=USR2", job]).returncode == 0
    (ended,) = slurm.wait(job, "COMPLETED")
    assert ended["Restarts"] == "1", log()
    assert "stopped early: back into the queue, restart 1 of at most 20" in log()
    assert "*** STEP" not in log()
    assert "Terminating" not in log()
    check_whole_run(run_dir, digest, 2)
    assert (run_dir / "slurm" / f"{job}.sbatch").read_text() == (ROOT / "slurm" / "single_node.sbatch").read_text()


def test_two_nodes_and_a_rank_that_is_killed(slurm, send, log, batch_config, digest, tmp_path):
    run_dir = tmp_path / "run"
    job = send("multi_node", ["--nodes=2"], batch_config, "--run-dir", run_dir)
    wait_for_round(slurm, run_dir, 2)
    os.kill(rank_pid(job, 1), signal.SIGKILL)
    killed = time.monotonic()
    (failed,) = slurm.wait(job, "FAILED")
    assert time.monotonic() - killed < 30
    assert failed["Restarts"] == "0", log()
    assert not (run_dir / "summary.json").exists()
    assert slurm.run(["scontrol", "requeue", job]).returncode == 0
    slurm.wait(job, "COMPLETED")
    check_whole_run(run_dir, digest, 2)


def test_a_second_job_in_one_directory_is_refused_and_told_of_the_first(slurm, send, log, batch_config, tmp_path):
    run_dir = tmp_path / "run"
    arguments = (batch_config, "federation.rounds=900", "--run-dir", run_dir)
    job = send("single_node", [], *arguments)
    wait_for_round(slurm, run_dir, 2)
    slurm.wait(send("single_node", [], *arguments), "FAILED")
    assert f"another run is writing here: job {job} on n" in log()
    assert slurm.run(["scancel", job]).returncode == 0
    slurm.wait(job, "CANCELLED")
    verify(run_dir)


def rank_pid(job, rank):
    """The process of a task on this machine, found by what Slurm gave it."""
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()}
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            command = environ.with_name("cmdline").read_bytes()
            if (
                wanted <= set(environ.read_bytes().split(b"\0"))
                and b"fedmef_dist" in command
                and b"srun" not in command
            ):
                return int(environ.parent.name)
        except OSError:
            continue  # it ended meanwhile
    raise AssertionError(f"no process of rank {rank} of job {job}")


def test_mpirun_warned_through_the_batch_script(slurm, send, log, batch_config, digest, tmp_path):
    run_dir = tmp_path / "run"
    job = send("mpi", ["--nodes=2", "--ntasks-per-node=2"], batch_config, "--run-dir", run_dir)
    wait_for_round(slurm, run_dir, 2)
    assert slurm.run(["scancel", "--batch", "--signal=USR2", job]).returncode == 0
    (ended,) = slurm.wait(job, "COMPLETED")
    assert ended["Restarts"] == "1", log()
    check_whole_run(run_dir, digest, 4)
    assert read(run_dir)["launcher"] == "mpich"


def test_submit_and_a_plain_cancel(slurm, batch_config, digest, tmp_path):
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "fedmef_dist", "submit", batch_config, "--nodes", "2", "--time", "10:00"]
    done = slurm.run([*map(str, command), "--run-dir", str(run_dir)], {"PYTHONPATH": str(ROOT)}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    job = done.stdout.split(",")[0].split()[-1]
    assert load_config(run_dir / "config.yaml") == load_config(batch_config)
    wait_for_round(slurm, run_dir, 2)
    assert slurm.run(["scancel", job]).returncode == 0
    slurm.wait(job, "CANCELLED")
    assert not (run_dir / "summary.json").exists()
    assert "stopped by SystemExit(75)" in (run_dir / "logs" / "rank-001.log").read_text()
    assert slurm.run(["scontrol", "requeue", job]).returncode == 0
    slurm.wait(job, "COMPLETED")
    check_whole_run(run_dir, digest, 2)
    kept = run_dir / "slurm"
    assert (kept / f"{job}.sbatch").read_text() == (kept / "job.sbatch").read_text()


def test_an_array_runs_every_cell_and_one_failure_is_that_cells_alone(slurm, send, batch_config, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        f"config: {batch_config}\nruns: {tmp_path / 'runs'}\ngrid: {{federation.clients_per_round: [5, 99, 4]}}\n"
    )
    job = send("sweep_array", ["--array=0-2"], grid, "federation.rounds=4")
    states = {ended["ArrayTaskId"]: ended["JobState"] for ended in slurm.wait(job, "COMPLETED", "FAILED")}
    assert states == {"0": "COMPLETED", "1": "FAILED", "2": "COMPLETED"}
    runs = {path.name: path for path in (tmp_path / "runs").iterdir()}
    assert set(runs) == {"clients_per_round-5", "clients_per_round-4"}
    assert {read(path)["rounds"] for path in runs.values()} == {4}


@pytest.mark.timeout(500)
def test_a_scaling_study_measures_each_point_as_a_step_and_survives_a_preemption(
    slurm, send, log, batch_config, tmp_path
):
    out = tmp_path / "study"
    job = send("scaling", ["--nodes=2"], batch_config, "--ranks", "1,2", "--repeats", 1, "--rounds", 10, "--out", out)
    deadline = time.monotonic() + 200
    while not [*out.glob("points/ranks-2*/metrics.jsonl")]:
        slurm.check()
        assert time.monotonic() < deadline, log()
        time.sleep(0.05)
    before = {path: path.stat().st_mtime_ns for path in out.glob("points/*/process.json")}
    assert slurm.run(["scancel", "--signal=USR2", job]).returncode == 0
    (ended,) = slurm.wait(job, "COMPLETED", timeout=240)
    assert ended["Restarts"] == "1", log()
    assert before
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())  # what was measured stays
    with (out / "scaling.csv").open() as file:
        measured = [(row["ranks"], row["local_ranks"]) for row in csv.DictReader(file)]
    assert sorted(measured) == [("1", "1"), ("2", "1"), ("2", "1")]
    assert "an allocation of 2 nodes with 2 tasks" in (out / "scaling.md").read_text()
    launchers = {json.loads(path.read_text())["launcher"] for path in out.glob("points/*/summary.json")}
    assert launchers == {"srun"}, log()
