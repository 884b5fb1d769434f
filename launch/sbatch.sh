#!/bin/bash
# Written by `pointsman slurm`. Submit with sbatch from the folder the run is to start in.
@directives
set -u

# Nothing of a launcher around sbatch may reach the ranks.
unset @stale
export OMP_NUM_THREADS=@threads
export PYTHONSAFEPATH=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=@grace
@exports

# The agents meet on the first node, at a port of this job's own.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((10000 + SLURM_JOB_ID % 20000))
start=${SLURM_RESTART_COUNT:-0}
echo "job $SLURM_JOB_ID, start $((start + 1)), on $SLURM_JOB_NODELIST, meeting at $head:$port"

# @notice seconds before the time limit Slurm sends USR1. The ranks are told to save and end, and the job goes back into
# the queue; its next start continues at the last checkpoint.
requeue=no
trap 'requeue=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 # to the step; srun itself would kill it at once
trap : TERM INT # of scancel, which tells the step as well

srun --nodes=@nodes --ntasks=@nodes --ntasks-per-node=1 --cpus-per-task=@cpus --kill-on-bad-exit=1 @container\
    @python -m launch.agent \
    @arguments &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do # a signal ends `wait`, not the step
    wait "$step"
    code=$?
done

if [ "$requeue" = yes ] && [ "$code" -ne 0 ] && scontrol requeue "$SLURM_JOB_ID"; then
    exit 0
fi
exit "$code"
