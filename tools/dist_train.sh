#!/usr/bin/env bash
# Train with one process per GPU: tools/dist_train.sh CONFIG GPUS [OPTIONS]
# On several nodes, run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT
# set. Without a GPU the processes share the CPU and talk over gloo. When a
# process dies, all are started again, MAX_RESTARTS times (3), and continue from
# the newest checkpoint of this launch.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
config=$1
gpus=$2
shift 2
exec "${PYTHON:-python}" -m lors_det.cli.torchrun \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$gpus" \
    --max-restarts="${MAX_RESTARTS:-3}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
