import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster.environment import Environment, detect

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "head",
    "MASTER_PORT": "29500",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "6",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "3", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "3"}
# A batch script, or a salloc shell, sees these without being a task of a step.
BATCH = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "3", "SLURM_PROCID": "0"}
STEP = {
    **BATCH,
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_ID": "4",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
}


def without(variables, *names):
    return {name: value for name, value in variables.items() if name not in names}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Environment("single", 0, 1, 0, 1, None, None)),
        (BATCH, Environment("single", 0, 1, 0, 1, None, None)),
        (TORCHRUN, Environment("torchrun", 3, 4, 1, 2, "head", 29500)),
        (OPENMPI, Environment("openmpi", 2, 6, 0, 2, None, None)),
        (MPICH, Environment("mpich", 1, 3, 1, 3, None, None)),
        # 15000 + (7 * 101 + 4)
        (STEP, Environment("srun", 2, 3, 0, 1, "n1", 15711)),
        ({**STEP, "MASTER_PORT": "4000"}, Environment("srun", 2, 3, 0, 1, "n1", 4000)),
    ],
)
def test_each_launcher_is_read(environ, expected):
    assert detect(environ) == expected


@pytest.mark.parametrize(
    ("environ", "launcher"),
    [
        ({**STEP, **MPICH, **OPENMPI, **TORCHRUN}, "torchrun"),
        ({**STEP, **MPICH, **OPENMPI}, "openmpi"),
        ({**STEP, **MPICH}, "mpich"),
        ({**BATCH, **MPICH}, "mpich"),
        ({**BATCH, **TORCHRUN}, "torchrun"),
        ({**STEP, "PMI_RANK": "2", "PMI_SIZE": "3"}, "srun"),  # srun --mpi=pmi2
    ],
)
def test_the_innermost_launcher_wins(environ, launcher):
    assert detect(environ).launcher == launcher


def test_the_process_environment_is_the_default(monkeypatch):
    for name in (*TORCHRUN, *OPENMPI, *MPICH, *STEP):
        monkeypatch.delenv(name, raising=False)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert detect().rank == 3


@pytest.mark.parametrize("missing", list(TORCHRUN))
def test_torchrun_needs_all_its_variables(missing):
    with pytest.raises(UserError, match=f"{missing} is not set"):
        detect(without(TORCHRUN, missing))


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        *((OPENMPI, name) for name in OPENMPI),
        *((MPICH, name) for name in MPICH),
        *((STEP, name) for name in ("SLURM_NODEID", "SLURM_LOCALID", "SLURM_STEP_ID", "SLURM_STEP_TASKS_PER_NODE")),
    ],
)
def test_partial_variables_are_refused(variables, missing):
    with pytest.raises(UserError, match=f"{missing} is not set"):
        detect(without(variables, missing))


@pytest.mark.parametrize(
    "wrong",
    [
        {**TORCHRUN, "RANK": "4"},
        {**TORCHRUN, "RANK": "-1"},
        {**TORCHRUN, "LOCAL_WORLD_SIZE": "5"},
        {**TORCHRUN, "LOCAL_RANK": "2"},
        {**MPICH, "PMI_SIZE": "0"},
    ],
)
def test_impossible_ranks_are_refused(wrong):
    with pytest.raises(UserError, match="impossible rank"):
        detect(wrong)


def test_text_in_place_of_a_number_is_refused():
    with pytest.raises(UserError, match="WORLD_SIZE='four' is not a number"):
        detect({**TORCHRUN, "WORLD_SIZE": "four"})


@pytest.mark.parametrize("variables", [TORCHRUN, STEP])
@pytest.mark.parametrize("port", ["0", "-1", "65536"])
def test_a_number_that_is_no_port_is_refused(variables, port):
    with pytest.raises(UserError, match=f"MASTER_PORT={port} is no port"):
        detect({**variables, "MASTER_PORT": port})


def test_a_node_beyond_the_step_is_refused():
    with pytest.raises(UserError, match="SLURM_NODEID=2"):
        detect({**STEP, "SLURM_NODEID": "2"})


BY_HAND = "task 0 may be on any node\n.*\nmend: export MASTER_ADDR"


def test_tasks_that_are_placed_by_hand_have_to_be_told_where_rank_0_is():
    arbitrary = {**STEP, "SLURM_DISTRIBUTION": "arbitrary"}
    with pytest.raises(UserError, match=BY_HAND):
        detect(arbitrary)
    assert detect({**arbitrary, "MASTER_ADDR": "n2"}).host == "n2"


def test_rank_0_on_another_node_than_the_first_is_noticed_however_it_came_there():
    with pytest.raises(UserError, match=BY_HAND):
        detect({**STEP, "SLURM_PROCID": "0"})


def test_elsewhere_the_first_node_is_that_of_rank_0_whatever_other_tools_have_exported():
    assert detect({**STEP, "MASTER_ADDR": "elsewhere"}).host == "n1"
    one = {"SLURM_STEP_NODELIST": "n1", "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "3"}
    assert detect({**STEP, **one, "SLURM_DISTRIBUTION": "arbitrary"}).host == "n1"


def test_ports_of_steps_differ_and_stay_below_the_ephemeral_range():
    ports = {
        detect({**STEP, "SLURM_JOB_ID": str(j), "SLURM_STEP_ID": str(s)}).port for j in range(20) for s in range(9)
    }
    assert len(ports) == 180
    assert all(15000 <= port < 32768 for port in ports)
    assert 15000 <= detect({**STEP, "SLURM_JOB_ID": "4294967295"}).port < 32768


def test_all_local_compares_the_node_with_the_world():
    assert detect(MPICH).all_local
    assert not detect(OPENMPI).all_local
