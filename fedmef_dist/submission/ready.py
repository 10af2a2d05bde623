"""The batch scripts of the folder slurm/, for those who rather call sbatch themselves."""

from dataclasses import replace

from fedmef_dist.submission.script import Job, batch_script, common_functions, source

# Slurm runs a copy of the script from elsewhere.
_SETUP = source("$SLURM_SUBMIT_DIR/slurm/common.sh", "submit from the folder that holds slurm/", "slurm/common.sh")
_OPTIONS = "Options before the script win over those below; account, partition: SBATCH_ACCOUNT, SBATCH_PARTITION."
_JOB = Job(ntasks_per_node=4, cpus_per_task=2)


def ready_scripts() -> dict[str, str]:
    """File name -> text, of every file in slurm/."""
    array = replace(_JOB, name="fedmef-sweep", output="%x-%A_%a.log", array=1)
    scripts = {
        "single_node": (_JOB, "One node", "CONFIG [section.key=value ...]", 'finish ranks run "$@"'),
        "multi_node": (
            replace(_JOB, nodes=4),
            "Several nodes; with GPUs: sbatch --gpus-per-node=4 ..., as many as tasks on a node",
            "CONFIG [section.key=value ...]",
            'finish ranks run "$@"',
        ),
        "mpi": (
            replace(_JOB, nodes=2, warn_shell=True),
            "Ranks started by the site's mpirun; module load its MPI before",
            "CONFIG [section.key=value ...]",
            'finish mpi_ranks run "$@"',
        ),
        "sweep_array": (
            array,
            "One cell of a grid for each job of the array; fedmef-dist sweep GRID --list counts the cells",
            "GRID [section.key=value ...]",
            'finish ranks sweep "$@" --cell "$SLURM_ARRAY_TASK_ID"',
        ),
        "scaling": (
            replace(_JOB, name="fedmef-scaling", nodes=2),
            "Scaling study over the allocation, one step a point",
            "CONFIG --ranks 1,2,4,8 --clients 100,1000 [--out DIR]\n#     [--predict 64,512,4096 --cluster "
            "configs/clusters/FILE.yaml [--simulate]]; what was measured before a preemption stays.",
            'finish "$PYTHON" -m fedmef_dist scale "$@"',
        ),
    }
    return {"common.sh": common_functions()} | {
        f"{name}.sbatch": batch_script(
            job,
            (
                f"{what}.",
                f"In the folder that holds slurm/: sbatch [option ...] slurm/{name}.sbatch {arguments}",
                _OPTIONS,
            ),
            _SETUP,
            command,
        )
        for name, (job, what, arguments, command) in scripts.items()
    }
