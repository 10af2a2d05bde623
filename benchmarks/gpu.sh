#!/usr/bin/env bash
# Everything that is worth knowing of a machine with a GPU, in at most eight minutes and without a network.
#
#     WHEELS=.whl OUT=results bash benchmarks/gpu.sh [PART ...]
#
# Parts: machine tests memcheck probe digests memory rounds; each has its own limit, so that none can eat the others'
# time, and TIME=0.5 halves all limits. Into OUT go log.txt, the probe's figures and the summaries of the runs.
# Needs python3 with torch, triton, numba, torchvision and pytest. What else is missing there can be carried as wheels
# in the folder WHEELS, fetched before on a machine with a network (here for Python 3.12):
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_17_x86_64 \
#         --platform manylinux2014_x86_64 --dest .whl pydantic==2.14.3 pydantic_core==2.50.4 annotated-types==0.8.0 \
#         typing-inspection==0.4.5 typing_extensions==4.16.0
#
# Without a GPU all of it runs on the CPU as far as it goes, to try the script.
set -uo pipefail
WORK=$(mktemp -d)
export WORK
OUT=${OUT:-$WORK/out}
PYTHON=${PYTHON:-python3}
TIME=${TIME:-1}
mkdir -p "$OUT"
exec > >(tee "$OUT/log.txt") 2>&1
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} TRITON_CACHE_DIR=$WORK/triton PYTHONDONTWRITEBYTECODE=1
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
if [ -n "${WHEELS:-}" ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$WORK/site" "$WHEELS"/*.whl || exit 3
    PYTHONPATH=$WORK/site:$PYTHONPATH
fi
export PYTHONPATH

limited() { # limited SECONDS COMMAND ...: not longer, whatever happens
    local seconds
    seconds=$(awk "BEGIN {print $1 * $TIME}")
    shift
    timeout --kill-after=5 "$seconds" "$@"
    local status=$?
    [ $status -ne 124 ] || echo "(stopped after $seconds s)"
    return $status
}

machine() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader
    limited 40 "$PYTHON" -m fedmef_dist doctor
}

tests() {
    limited 150 "$PYTHON" -m pytest -q -n 6 -p no:cacheprovider -m "not cluster" tests/layers \
        tests/clients/test_passes.py tests/clients/test_client.py \
        tests/data/test_batches.py tests/sums tests/devices/test_memory.py 2>&1 | tail -25
}

memcheck() { # of the kernels; ends early where the tool does not know the device
    limited 60 compute-sanitizer --tool memcheck "$PYTHON" -m pytest -q -p no:xdist -p no:cacheprovider \
        tests/layers/kernels/test_gpu.py -k "1000 and float32" 2>&1 | tail -6
}

probe() {
    limited 170 "$PYTHON" benchmarks/gpu_probe.py "$OUT/probe.json" steps kept graphs bits precision host nccl \
        round-waits --seconds "$(awk "BEGIN {print 140 * $TIME}")" 2>&1 | grep -v USDT
}

rounds() {
    limited 130 "$PYTHON" benchmarks/gpu_probe.py "$OUT/rounds.json" rounds \
        --seconds "$(awk "BEGIN {print 100 * $TIME}")"
}

simulate() { # simulate NAME [LAUNCHER ...] -- [key=value ...]: a short FedMef run; its summary goes to OUT
    local name=$1 launcher=()
    shift
    while [ "$1" != -- ]; do launcher+=("$1"); shift; done
    shift
    [ ${#launcher[@]} -gt 0 ] || launcher=("$PYTHON")
    limited 80 "${launcher[@]}" -m fedmef_dist run configs/quickstart.yaml federation.rounds=7 \
        tracking.wandb.mode=disabled tracking.console=false "$@" --run-dir "$WORK/$name" >"$WORK/$name.log" 2>&1 ||
        tail -3 "$WORK/$name.log"
    cp "$WORK/$name/summary.json" "$OUT/summary-$name.json" 2>/dev/null || echo "$name: no summary"
}

together() { # together COMMAND : COMMAND : ...: side by side; "wait" alone would wait for the log as well
    local command=() running=() word
    for word in "$@" :; do
        if [ "$word" = : ]; then
            "${command[@]}" &
            running+=($!)
            command=()
        else
            command+=("$word")
        fi
    done
    wait "${running[@]}"
}

digests() { # the same bits twice, on two ranks of one GPU, with slots; other precisions, FedAvg and the CPU beside them
    local ranks=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 2)
    together simulate once -- : simulate twice -- : simulate ranks "${ranks[@]}" -- : \
        simulate bf16 -- runtime.precision=bf16 : simulate cpu -- runtime.device=cpu : \
        simulate fedavg -- method.name=fedavg : simulate fedavg-ranks "${ranks[@]}" -- method.name=fedavg
    together simulate slots-4 -- runtime.slots=4 : simulate ranks-slots-2 "${ranks[@]}" -- runtime.slots=2 : \
        simulate slots-4-computed -- runtime.slots=4 runtime.graphs=false : \
        simulate fedavg-slots-4 -- runtime.slots=4 method.name=fedavg : simulate tf32 -- runtime.precision=tf32
    "$PYTHON" - "$OUT" <<'PY'
import json, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("summary-*.json")):
    summary = json.loads(path.read_text())
    print(f"{path.stem[8:]:16} {summary['device']:7} {summary['world_size']} rank(s) digest {summary['model/digest'][:16]}"
          f" accuracy {summary['eval/accuracy_last']:.4f} {summary['time/total']:.1f} s")
PY
}

memory() { # what a step holds, by model and by measurement
    for ratio in 0 0.5 0.9; do
        limited 60 "$PYTHON" -m fedmef_dist memory configs/cifar10_resnet18.yaml data.dataset=synthetic \
            federation.batch_size=64 "sap.prune_ratio=$ratio" --json --steps 10 >"$OUT/memory-$ratio.json" &&
            "$PYTHON" - "$OUT/memory-$ratio.json" "$ratio" <<'PY'
import json, sys
for one in json.load(open(sys.argv[1])):
    step = one["step_seconds"]
    print(f"p={sys.argv[2]} {one['method']:10} held {one['activation_bytes'] / 1e6:7.1f} MB, modelled "
          f"{one['modelled_bytes'] / 1e6:7.1f} MB, peak {one['peak_bytes'] / 1e6:7.1f} MB, step {1000 * step:7.2f} ms")
PY
    done
}

for part in "${@:-machine tests memcheck probe digests memory rounds}"; do
    for one in $part; do
        echo
        echo "=== $(date +%T) $one"
        "$one"
    done
done
echo "=== $(date +%T) end"
