#!/usr/bin/env bash
# Test with one process per GPU:
# tools/dist_test.sh CONFIG CHECKPOINT GPUS [OPTIONS]
# On several nodes, run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT
# set. Without a GPU the processes share the CPU and talk over gloo.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of tools/test.py]" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3
exec "${PYTHON:-python}" -m lors_det.cli.torchrun \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$gpus" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
