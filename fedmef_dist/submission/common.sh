# shellcheck shell=bash
# What every batch script needs. Settings, from the environment of sbatch or from lines before this file is sourced:
#   PYTHON        interpreter that has fedmef_dist, default: python
#   MPIRUN        mpirun and its options (mpi.sbatch), default: mpirun
#   MAX_RESTARTS  how often a run that a signal stopped early goes back into the queue, default: 20
set -euo pipefail

PYTHON=${PYTHON:-python}
MAX_RESTARTS=${MAX_RESTARTS:-20}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export FEDMEF_BATCH_SCRIPT=$0 # rank 0 keeps a copy in the run directory

# ranks COMMAND [ARGUMENT ...]: python -m fedmef_dist as one task a rank; every rank ends when one fails.
ranks() {
    # The ranks end each other; what is left 30 s after the first is killed. Slurm's own way would call every run that a
    # signal stopped early a cancelled step. Since 22.05 a step does not take --cpus-per-task over from its job.
    srun --kill-on-bad-exit=0 --wait=30 --cpus-per-task="$OMP_NUM_THREADS" --label "$PYTHON" -m fedmef_dist "$@"
}

# mpi_ranks COMMAND [ARGUMENT ...]: the same under mpirun, which dies of USR2 but hands USR1 on to its ranks.
mpi_ranks() {
    local mpirun
    read -r -a mpirun <<<"${MPIRUN:-mpirun}"
    "${mpirun[@]}" -n "$SLURM_NTASKS" "$PYTHON" -m fedmef_dist "$@" &
    trap 'if kill -0 $! 2>/dev/null; then kill -USR1 $!; fi' USR2
    while kill -0 $! 2>/dev/null; do
        wait $! || true # USR2 interrupts it
    done
    wait $! # the status of mpirun, which has ended
}

# finish COMMAND [ARGUMENT ...]: runs it and ends the job with its status. Where a signal stopped the run early, the job
# goes back into the queue. Status 75: with a checkpoint; 128 + USR2: before Python could listen to signals.
finish() {
    local status=0 restarts=${SLURM_RESTART_COUNT:-0} stopped=0
    "$@" || status=$?
    ((status == 75 || status == 128 + $(kill -l USR2))) && stopped=1
    if ((stopped && restarts < MAX_RESTARTS)); then
        echo "stopped early: back into the queue, restart $((restarts + 1)) of at most $MAX_RESTARTS"
        scontrol requeue "$SLURM_JOB_ID"
    elif ((stopped)); then
        echo "stopped early: not requeued after $restarts restarts; to go on: scontrol requeue $SLURM_JOB_ID" >&2
    fi
    exit "$status"
}
