#!/usr/bin/env bash
# NRANKS processes on this machine, or on each of several:
#   launch/torchrun.sh NRANKS run CONFIG [key=value ...]
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-host MASTER_PORT=29500 launch/torchrun.sh NRANKS run CONFIG ...
# The exit status is that of the first rank that failed.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 NRANKS COMMAND [ARGUMENT ...]    for example: $0 2 run configs/quickstart.yaml" >&2
    exit 2
fi
nranks=$1
shift

if [[ ${NNODES:-1} -gt 1 ]]; then
    where=(--nnodes "$NNODES" --node-rank "${NODE_RANK:?the number of this machine, from 0}"
        --master-addr "${MASTER_ADDR:?the host name of machine 0}" --master-port "${MASTER_PORT:-29500}")
else
    where=(--standalone)
fi

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "${PYTHON:-python}" -m fedmef_dist.cluster.torchrun "${where[@]}" --nproc-per-node "$nranks" -m fedmef_dist "$@"
