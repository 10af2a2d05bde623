import pytest

from fedmef_dist.cluster.symptoms import Symptom
from fedmef_dist.commands import doctor as module
from fedmef_dist.commands.doctor import Finding, doctor, findings, mpi_library

LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "PMI_RANK",
    "PMI_SIZE",
    "MPI_LOCALRANKID",
    "SLURM_STEP_NUM_TASKS",
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_single_process_is_described(capsys):
    assert doctor() == 0
    shown = capsys.readouterr().out
    assert "launcher    single, 1 rank\n" in shown
    assert "all-reduce  right" in shown
    assert "fashion_mnist" in shown
    assert "\x1b" not in shown  # no colours without a terminal


def test_what_is_missing_is_said_with_how_to_get_it(capsys, monkeypatch):
    lost = [Finding("Slurm", None, "apt install slurm-wlm munge"), Finding("wandb", "0.1", "pip install wandb")]
    monkeypatch.setattr(module, "findings", lambda: lost)
    doctor()
    shown = capsys.readouterr().out
    assert "Slurm         missing: apt install slurm-wlm munge\n" in shown
    assert "wandb         0.1\n" in shown


def test_extras_keep_their_brackets(capsys, monkeypatch):
    monkeypatch.setattr(module, "mpi_library", lambda: None)
    doctor()
    assert "pip install 'fedmef_dist[mpich]'" in capsys.readouterr().out


def test_what_the_machine_says_of_itself_is_shown_and_not_obeyed(capsys, monkeypatch):
    monkeypatch.setattr(module, "processor_name", lambda: "a [bold red]chip[/] \x1b[2J")
    monkeypatch.setattr(module, "findings", lambda: [Finding("Slurm", "/opt/[x]/srun\x07", "")])
    monkeypatch.setattr(module, "symptoms", lambda *facts: [Symptom("host [/] is \x1b[1m", "see [link]")])
    monkeypatch.setenv("COLUMNS", "200")
    doctor()
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    for text in ("a [bold red]chip[/] \\x1b[2J", "/opt/[x]/srun\\x07", "host [/] is \\x1b[1m", "see [link]"):
        assert text in shown


def test_symptoms_stand_at_the_end_with_their_cures(capsys, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert doctor() == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-2:]
    assert last == [
        "the job has 4 tasks, but this is a single process",
        "  start it with srun, or with the scripts in slurm/",
    ]


def test_a_wrong_sum_is_a_failure(capsys, monkeypatch):
    monkeypatch.setattr(module, "_try_all_reduce", lambda group: (0.001, False))
    assert doctor() == 1
    assert "WRONG SUM, 1.00 ms" in capsys.readouterr().out


def test_every_optional_part_is_looked_for():
    names = [finding.name for finding in findings()]
    assert names == ["torch", "CUDA", "MPI library", "mpirun", "Slurm", "wandb", "fashion_mnist"]
    assert all(finding.remedy for finding in findings())


def test_the_mpi_library_names_itself():
    assert "MPI" in mpi_library()


@pytest.mark.cluster
def test_every_rank_contributes_its_line(launch, tmp_path):
    script = tmp_path / "examine.py"
    script.write_text("import sys\nfrom fedmef_dist.commands.doctor import doctor\nsys.exit(doctor())\n")
    done = launch("mpirun", 2, script)
    assert done.returncode == 0, done.stderr
    assert "launcher    mpich, 2 ranks" in done.stdout
    assert "all-reduce  right" in done.stdout
    rows = [line.split()[0] for line in done.stdout.partition("rank ")[2].splitlines()[1:3]]
    assert rows == ["0", "1"]
