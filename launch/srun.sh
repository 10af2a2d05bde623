#!/usr/bin/env bash
# NRANKS tasks inside a Slurm allocation: launch/srun.sh NRANKS run CONFIG [key=value ...]
# SRUN="srun --nodes=2 --gpus-per-task=1" launch/srun.sh ... adds options of srun.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 NRANKS COMMAND [ARGUMENT ...]    for example: $0 2 run configs/quickstart.yaml" >&2
    exit 2
fi
nranks=$1
shift

options=(--ntasks="$nranks")
case $1 in
    # The ranks of a run end each other. Slurm would call one that a signal stopped early a cancelled step.
    run | sweep) options+=(--kill-on-bad-exit=0 --wait=30) ;;
    *) options+=(--kill-on-bad-exit=1) ;;
esac
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
    # Since 22.05 a step does not take this over from its job.
    options+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
fi
read -r -a srun <<<"${SRUN:-srun}"

exec "${srun[@]}" "${options[@]}" "${PYTHON:-python}" -m fedmef_dist "$@"
