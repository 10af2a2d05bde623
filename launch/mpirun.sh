#!/usr/bin/env bash
# NRANKS processes under Open MPI or MPICH: launch/mpirun.sh NRANKS run CONFIG [key=value ...]
# MPIRUN="mpirun --hostfile hosts" launch/mpirun.sh ... adds options of your mpirun.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 NRANKS COMMAND [ARGUMENT ...]    for example: $0 2 run configs/quickstart.yaml" >&2
    exit 2
fi
nranks=$1
shift

python=${PYTHON:-python}
read -r -a mpirun <<<"${MPIRUN:-mpirun}"
if [[ -z ${MPIRUN:-} ]]; then
    # The mpich wheel puts its mpirun beside python; it is the one that mpi4py of the same environment belongs to.
    beside=$(dirname "$(command -v "$python")")/mpirun
    if [[ -x $beside ]]; then
        mpirun=("$beside")
    fi
fi

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "${mpirun[@]}" -n "$nranks" "$python" -m fedmef_dist "$@"
