import re
from pathlib import Path

import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.submission.ready import ready_scripts
from fedmef_dist.submission.script import Job, batch_script

SLURM = Path(__file__).parents[2] / "slurm"


def test_the_folder_slurm_is_what_the_package_writes():
    # After a change: python -m fedmef_dist.submission slurm
    assert {path.name: path.read_text() for path in SLURM.iterdir()} == ready_scripts()


def test_the_directives_of_a_job_with_gpus():
    job = Job("x", "/a b/%j.log", nodes=4, ntasks_per_node=8, cpus_per_task=2, gpus_per_node=8, time="1-12", array=3)
    assert job.directives() == [
        "#SBATCH --job-name=x",
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --time=1-12",
        "#SBATCH --array=0-2",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --output='/a b/%j.log'",
    ]


def test_a_plain_job_asks_for_no_gpus_and_no_array():
    assert not [line for line in Job(warn_shell=True).directives() if "gpus" in line or "array" in line]
    assert "#SBATCH --signal=B:USR2@120" in Job(warn_shell=True).directives()


def test_directives_stand_before_the_first_command():
    lines = batch_script(Job(), ["what it is"], ["source x"], "finish y").splitlines()
    assert lines[:2] == ["#!/usr/bin/env bash", "# what it is"]
    assert lines[-4:] == ["", "source x", "", "finish y"]
    assert all(line.startswith("#") for line in lines[: lines.index("")])


@pytest.mark.parametrize("name", [name for name in ready_scripts() if name.endswith(".sbatch")])
def test_every_ready_script_fits_one_screen_and_names_no_site(name):
    text = ready_scripts()[name]
    assert len(text.splitlines()) <= 24
    directives = re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)
    assert {"requeue", "open-mode", "signal", "time", "nodes"} <= set(directives)
    assert not {"account", "partition", "nodelist", "qos"} & set(directives)


@pytest.mark.parametrize("time", ["90", "90:00", "4:00:00", "2-12", "2-12:30", "2-12:30:00"])
def test_every_form_of_time_that_slurm_takes(time):
    assert f"#SBATCH --time={time}" in Job(time=time).directives()


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"time": "4h"}, "--time"),
        ({"time": "1-2-3"}, "--time"),
        ({"time": ""}, "--time"),
        ({"nodes": 0}, "--nodes"),
        ({"ntasks_per_node": 0}, "--ntasks-per-node"),
        ({"cpus_per_task": -1}, "--cpus-per-task"),
        ({"gpus_per_node": -1}, "--gpus-per-node"),
    ],
)
def test_what_slurm_would_not_take_is_refused(options, where):
    with pytest.raises(UserError, match=f"(?s)does not fit\nwhere: {where}\nmend: "):
        Job(**options)
