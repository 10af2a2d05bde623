#!/usr/bin/env bash
# One process, without a launcher: launch/local.sh run CONFIG [key=value ...]
set -euo pipefail

if [[ $# -lt 1 ]]; then
    echo "usage: $0 COMMAND [ARGUMENT ...]    for example: $0 run configs/quickstart.yaml" >&2
    exit 2
fi

exec "${PYTHON:-python}" -m fedmef_dist "$@"
