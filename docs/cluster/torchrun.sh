#!/usr/bin/env bash
# Start this on every node, in any order: HEAD=first-node DATA=/shared/imagenet docs/cluster/torchrun.sh
# NODES may be a range: with 1:2 the run begins with one node, takes in another, and goes on when it is lost.
set -euo pipefail
: "${HEAD:?name or address of the node where the others meet}" "${DATA:?a packed dataset, or its URL}"
cd "$(dirname "$0")/../.."

# torch 2.15 keeps the first round's meeting place, which a node that comes later does not get
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec torchrun \
    --nnodes "${NODES:-1:2}" \
    --nproc-per-node "${RANKS:-gpu}" \
    --max-restarts "${RESTARTS:-10}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$HEAD:${PORT:-29400}" \
    --rdzv-id "${RUN:-penstock}" \
    train.py --data "$DATA" --recipe "${RECIPE:-rn50-90ep}" --run-dir "${RUN_DIR:-runs/${RUN:-penstock}}" "$@"
