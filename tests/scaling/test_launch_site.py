import os
import sys
from pathlib import Path

import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster import mpirun as by_mpi
from fedmef_dist.scaling import launch_site as module
from fedmef_dist.scaling.launch_site import LaunchSite, find_place
from fedmef_dist.scaling.probe import read_probes

RUN = ["-m", "fedmef_dist", "run", "x"]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "PMI_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "MPIRUN")):
            monkeypatch.delenv(name)


@pytest.fixture
def started(monkeypatch):
    calls = []
    for place in (module, by_mpi):
        monkeypatch.setattr(place, "wait_for", lambda commands, *rest: calls.extend(command for command, _ in commands))
    return calls


@pytest.fixture
def mpirun(monkeypatch, tmp_path):
    """An mpirun in the path, where there is none beside Python."""
    program = tmp_path / "bin" / "mpirun"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return str(program)


def test_alone_the_ranks_are_this_machines():
    assert find_place() == LaunchSite(None)
    assert LaunchSite(None).local_ranks(3) == 3
    LaunchSite(None).check(64)


def test_inside_an_allocation_every_point_is_a_step(monkeypatch, started, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "4(x2)")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    place = find_place()
    assert place == LaunchSite((4, 4))
    assert [place.local_ranks(ranks) for ranks in (1, 4, 6)] == [1, 4, 4]
    place.run(["run", "x"], 6, tmp_path / "log")
    options = ["--nodes=2", "--ntasks=6", "--cpus-per-task=3", "--kill-on-bad-exit=0", "--wait=30"]
    assert started == [["srun", *options, sys.executable, *RUN]]
    with pytest.raises(UserError, match="8 tasks on 2 nodes, not 9\nwhere: --ranks"):
        place.check(9)


def test_a_report_says_where_its_ranks_ran():
    assert str(LaunchSite(None)) == "one machine"
    assert str(LaunchSite((4, 4))) == "an allocation of 2 nodes with 8 tasks"
    assert str(LaunchSite(None, (), ("mpirun",))) == "one machine, by mpirun"
    assert str(LaunchSite((1, 1), ("a", "b"), ("mpirun",))) == "2 nodes with 2 tasks, by mpirun"


def test_a_rank_cannot_start_a_study(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match="torchrun has started it"):
        find_place()


def test_ranks_that_talk_through_mpi_are_started_by_mpirun(mpirun, monkeypatch, started, tmp_path):
    place = find_place("mpi")
    assert place == LaunchSite(None, (), (mpirun,))
    place.run(["run", "x"], 2, tmp_path / "log")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "4(x2)")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    place = find_place("mpi")
    place.run(["run", "x"], 6, tmp_path / "log")
    assert started == [
        [mpirun, "-n", "2", sys.executable, *RUN],
        [mpirun, "--host", "n1:4,n2:4", "-n", "6", sys.executable, *RUN],
    ]


def test_named_hosts_are_filled_one_after_another_and_probed_with_a_rank_each(mpirun, monkeypatch, started, tmp_path):
    monkeypatch.setenv("MPIRUN", "mpirun --bind-to core")
    place = find_place("gloo", "a:4, b-2.cluster:4")
    assert place.probes([1, 2, 4, 8]) == [(2, False), (4, False), (2, True)]
    place.run(["run", "x"], 8, tmp_path / "log")
    place.run(["run", "x"], 2, tmp_path / "log", spread=True)
    start = [mpirun, "--bind-to", "core", "--host"]
    assert started == [
        [*start, "a:4,b-2.cluster:4", "-n", "8", sys.executable, *RUN],
        [*start, "a:1,b-2.cluster:1", "-n", "2", sys.executable, *RUN],
    ]


def test_the_mpirun_beside_python_comes_first(mpirun, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(Path(mpirun).with_name("python")))
    monkeypatch.setenv("PATH", "")
    assert by_mpi.find_mpirun("--hosts") == (mpirun,)


@pytest.mark.parametrize(
    ("backend", "hosts", "where"), [("mpi", "", "runtime.backend: mpi"), ("auto", "a:1", "--hosts")]
)
def test_a_missing_mpirun_is_said(mpirun, monkeypatch, backend, hosts, where):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=f"mpirun is not there(.|\n)*where: {where}\nmend: load your site's MPI"):
        find_place(backend, hosts)


def test_an_mpirun_that_is_no_command_is_refused(monkeypatch):
    monkeypatch.setenv("MPIRUN", "mpirun --hostfile 'my hosts")
    with pytest.raises(UserError, match="is no command: No closing quotation"):
        by_mpi.find_mpirun("--hosts")


@pytest.mark.parametrize("hosts", ["a", "a:0", "a:x", "a:1,a:2", "a:1,", "a b:1", "-a;:1"])
def test_hosts_that_are_no_list_are_refused(mpirun, hosts):
    with pytest.raises(UserError, match=r"is not a list of hosts.*\nwhere: --hosts"):
        find_place("auto", hosts)


@pytest.mark.cluster
def test_mpirun_really_starts_ranks_that_talk_through_mpi(tmp_path):
    config, out = tmp_path / "config.yaml", tmp_path / "probe.json"
    config.write_text("method: {name: fedavg}\nruntime: {backend: mpi}\n")
    assert find_place("mpi").run(["probe", str(config), "--out", str(out)], 2, tmp_path / "log") == 0
    assert {(probe.ranks, probe.local_ranks, probe.backend) for probe in read_probes(out)} == {(2, 2, "mpi")}
