import json
import sys

import pytest

pytestmark = pytest.mark.cluster

SCRIPT = """
import json, os, sys
import torch
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.failure import ends_together
from fedmef_dist.cluster.group import RuntimeSettings, open_group
from fedmef_dist.base.errors import UserError

environment = detect(os.environ)
with open_group(environment, RuntimeSettings(timeout=30.0)) as group, ends_together(group):
    total = torch.tensor([2**53 + 1, -group.rank])
    group.all_reduce(total)
    if "fault" in sys.argv and group.rank == 1:
        raise ValueError("broken")
    if "input" in sys.argv:
        raise UserError("wrong input")
    group.barrier()
    place = [group.rank, group.world_size, environment.local_rank, environment.local_world_size]
    words = [environment.launcher, os.environ["SLURMD_NODENAME"], environment.host]
    print(json.dumps([*place, *words, total.tolist()]) + "\\n", end="", flush=True)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "collectives.py"
    path.write_text(SCRIPT)
    return path


def results(done):
    assert done.returncode == 0, done.stderr
    return sorted(map(json.loads, done.stdout.splitlines()))


def test_two_nodes_compute_together(slurm, script):
    done = slurm.srun([sys.executable, script], ntasks=2, nodes=2)
    assert results(done) == [
        [0, 2, 0, 1, "srun", "n1", "n1", [2**54 + 2, -1]],
        [1, 2, 0, 1, "srun", "n2", "n1", [2**54 + 2, -1]],
    ]


def test_three_tasks_on_two_nodes_know_their_places(slurm, script):
    total = [3 * 2**53 + 3, -3]
    done = slurm.srun([sys.executable, script], ntasks=3, nodes=2)
    assert results(done) == [
        [0, 3, 0, 2, "srun", "n1", "n1", total],
        [1, 3, 1, 2, "srun", "n1", "n1", total],
        [2, 3, 0, 1, "srun", "n2", "n1", total],
    ]


def test_a_fault_of_one_task_ends_the_step(slurm, script):
    done = slurm.srun([sys.executable, script, "fault"], ntasks=2, nodes=2, timeout=60)
    # srun's status is the highest: that of a task which Slurm ended before it noticed is 128 + SIGTERM.
    assert done.returncode in (1, 143)
    assert done.stderr.count("ValueError: broken") == 1
    assert "rank 1 of 2 on" in done.stderr


def test_wrong_input_is_shown_once_with_its_status(slurm, script):
    done = slurm.srun([sys.executable, script, "input"], ntasks=2, nodes=2, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("wrong input\n") == 1


def test_a_batch_script_without_srun_is_a_single_process(slurm, tmp_path):
    batch, output = tmp_path / "job.sh", tmp_path / "out.txt"
    code = "from fedmef_dist.cluster.environment import detect; e = detect(); print(e.launcher, e.world_size)"
    batch.write_text(f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks=2 --output={output}\n{sys.executable} -c '{code}'\n")
    done = slurm.sbatch(batch)
    assert done.returncode == 0, done.stderr
    assert output.read_text() == "single 1\n"


def test_mpirun_inside_a_batch_job_wins_over_the_jobs_variables(slurm, tmp_path):
    code, batch, output = tmp_path / "place.py", tmp_path / "job.sh", tmp_path / "out.txt"
    code.write_text(
        "from fedmef_dist.cluster.environment import detect\n"
        "e = detect()\nprint(f'{e.launcher} {e.rank}/{e.world_size}\\n', end='', flush=True)\n"
    )
    mpirun = f"{sys.prefix}/bin/mpirun -launcher fork -n 2 {sys.executable} {code}"
    batch.write_text(f"#!/bin/bash\n#SBATCH --nodes=1 --ntasks=2 --output={output}\n{mpirun}\n")
    done = slurm.sbatch(batch)
    assert done.returncode == 0, output.read_text()
    assert sorted(output.read_text().splitlines()) == ["mpich 0/2", "mpich 1/2"]
