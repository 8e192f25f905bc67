#!/usr/bin/env bash
# Start this on every node, in any order: HEAD=first-node DATA=/shared/imagenet docs/cluster/torchrun.sh
# NODES may be a range. With 1:2 the run starts with one node, adds a second, and continues if it loses one.
set -euo pipefail
: "${HEAD:?name or address of the node that hosts the rendezvous}" "${DATA:?a packed dataset, or its URL}"
cd "$(dirname "$0")/../.."

# torch 2.15 keeps rank 0's address from the first rendezvous round. A node that joins later does not get it
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec torchrun \
    --nnodes "${NODES:-1:2}" \
    --nproc-per-node "${RANKS:-gpu}" \
    --max-restarts "${RESTARTS:-10}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$HEAD:${PORT:-29400}" \
    --rdzv-id "${RUN:-penstock}" \
    train.py --data "$DATA" --recipe "${RECIPE:-rn50-90ep}" --run-dir "${RUN_DIR:-runs/${RUN:-penstock}}" "$@"
