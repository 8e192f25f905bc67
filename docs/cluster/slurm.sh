#!/usr/bin/env bash
#SBATCH --job-name=penstock
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#
# DATA=/shared/imagenet sbatch docs/cluster/slurm.sh [options of train.py]
#
# Before the time limit, and when a more urgent job preempts this one, the ranks get SIGTERM, write a checkpoint and
# end. The script then requeues the job. It starts again with the same job id, and so in the same run directory. It
# resumes from the checkpoint, on as many nodes as it gets.
set -euo pipefail
: "${DATA:?a packed dataset, or its URL}"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
stopped=""
stop() {
    stopped=yes
    kill -TERM "$step" || true # srun passes it to torchrun on every node, and torchrun to its ranks
}
trap stop USR1 TERM
preempted() { # on preemption, Slurm signals the steps but not this script
    [[ "$(scontrol show job -o "$SLURM_JOB_ID")" =~ \ PreemptTime=[0-9] ]]
}

# torch 2.15 keeps rank 0's address from the first rendezvous round. A node that joins later does not get it
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node "${SLURM_GPUS_ON_NODE:-gpu}" \
    --max-restarts 3 \
    --rdzv-backend c10d \
    --rdzv-endpoint "$head:$((29400 + SLURM_JOB_ID % 1000))" \
    --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    train.py --data "$DATA" --recipe "${RECIPE:-rn50-90ep}" --run-dir "${RUN_DIR:-runs/slurm-$SLURM_JOB_ID}" "$@" &
step=$!

status=0
wait "$step" || status=$?
while kill -0 "$step" 2>/dev/null; do # a signal ends `wait` but not the step
    status=0
    wait "$step" || status=$?
done
if [ -n "$stopped" ] || { [ "$status" -ne 0 ] && preempted; }; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
