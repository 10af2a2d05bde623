"""The functions of common.sh, with programs in the place of Slurm's that write down how they were called."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from fedmef_dist.submission.script import common_functions


@pytest.fixture
def shell(tmp_path):
    """Starts a batch script with these lines after common.sh; the file `calls` gets the calls of Slurm's programs."""
    (tmp_path / "common.sh").write_text(common_functions())
    for program in ("srun", "scontrol"):
        (tmp_path / program).write_text(f'#!/bin/bash\necho "{program} $*" >>"{tmp_path}/calls"\n')
        (tmp_path / program).chmod(0o700)

    def start(lines, **variables):
        script = tmp_path / "job.sbatch"
        script.write_text(f'source "{tmp_path}/common.sh"\n{lines}\n')
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **variables}
        return subprocess.Popen(
            ["bash", str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def finished(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def calls(tmp_path):
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("status", [0, 1, 2, 137])
def test_the_jobs_status_is_the_commands(shell, tmp_path, status):
    assert finished(shell(f"finish bash -c 'exit {status}'\necho not reached")) == (status, "", "")
    assert calls(tmp_path) == []


@pytest.mark.parametrize("status", [75, 128 + signal.SIGUSR2])
def test_a_run_that_a_signal_stopped_goes_back_into_the_queue(shell, tmp_path, status):
    process = shell(f"finish bash -c 'exit {status}'", SLURM_RESTART_COUNT="2", MAX_RESTARTS="3")
    ended, out, _ = finished(process)
    assert ended == status
    assert out == "stopped early: back into the queue, restart 3 of at most 3\n"
    assert calls(tmp_path) == ["scontrol requeue 7"]


def test_but_not_for_ever(shell, tmp_path):
    status, _, err = finished(shell("finish bash -c 'exit 75'", SLURM_RESTART_COUNT="3", MAX_RESTARTS="3"))
    assert status == 75
    assert err == "stopped early: not requeued after 3 restarts; to go on: scontrol requeue 7\n"
    assert calls(tmp_path) == []


def test_one_task_a_rank_with_the_jobs_threads(shell, tmp_path):
    done = finished(shell('ranks run "a b" --run-dir x', SLURM_CPUS_PER_TASK="3", PYTHON="py"))
    assert done == (0, "", "")
    assert calls(tmp_path) == [
        "srun --kill-on-bad-exit=0 --wait=30 --cpus-per-task=3 --label py -m fedmef_dist run a b --run-dir x"
    ]


def test_mpirun_starts_all_tasks_of_the_job(shell, tmp_path):
    (tmp_path / "fakempi").write_text('#!/bin/bash\necho "$*" "$OMP_NUM_THREADS"\nexit 4\n')
    (tmp_path / "fakempi").chmod(0o700)
    process = shell("finish mpi_ranks run x", SLURM_NTASKS="6", MPIRUN=f"{tmp_path}/fakempi --bind-to core")
    assert finished(process) == (4, "--bind-to core -n 6 python -m fedmef_dist run x 1\n", "")


def test_the_warning_before_the_time_limit_reaches_mpirun_in_words_that_it_hands_on(shell, tmp_path):
    code = f"import signal, sys, time; signal.signal({int(signal.SIGUSR1)}, lambda *_: (time.sleep(0.3), sys.exit(75)))"
    (tmp_path / "fakempi").write_text(
        f'#!/bin/bash\nexec {sys.executable} -c "{code}; print(1, flush=True); time.sleep(150)"\n'
    )
    (tmp_path / "fakempi").chmod(0o700)
    process = shell("finish mpi_ranks run x", SLURM_NTASKS="2", MPIRUN=f"{tmp_path}/fakempi")
    assert process.stdout.readline() == "1\n"
    started = time.monotonic()
    process.send_signal(signal.SIGUSR2)
    assert finished(process)[0] == 75
    assert time.monotonic() - started < 100
    assert calls(tmp_path) == ["scontrol requeue 7"]


def test_an_mpirun_that_dies_of_the_signal_is_waited_for_once(shell, tmp_path):
    (tmp_path / "fakempi").write_text("#!/bin/bash\nkill -USR2 $$\n")
    (tmp_path / "fakempi").chmod(0o700)
    assert finished(shell("finish mpi_ranks run x", SLURM_NTASKS="2", MPIRUN=f"{tmp_path}/fakempi"))[0] == 140
    assert calls(tmp_path) == ["scontrol requeue 7"]


def test_a_warning_after_the_end_of_mpirun_changes_nothing(shell, tmp_path):
    (tmp_path / "fakempi").write_text("#!/bin/bash\nexit 0\n")
    (tmp_path / "fakempi").chmod(0o700)
    process = shell("mpi_ranks run x\nkill -USR2 $$\nexit 0", SLURM_NTASKS="2", MPIRUN=f"{tmp_path}/fakempi")
    assert finished(process) == (0, "", "")


def test_each_job_has_a_random_word_for_the_keys_of_its_store(shell):
    first, second = (finished(shell("printenv FEDMEF_STORE_KEY"))[1] for _ in range(2))
    assert re.fullmatch("[0-9a-f]{32}\n", first)
    assert first != second


def test_the_batch_script_is_named_for_the_run_to_keep(shell, tmp_path):
    assert finished(shell('echo "$FEDMEF_BATCH_SCRIPT"'))[1] == f"{tmp_path}/job.sbatch\n"
