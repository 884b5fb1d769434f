#!/bin/bash
# Written by `pointsman slurm`. Submit with sbatch from the folder the run is to start in.
@directives
set -u

# Nothing of a launcher around sbatch may reach the ranks.
unset @stale
export OMP_NUM_THREADS=@threads
@allocator
export PYTHONSAFEPATH=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=@grace
@exports
folder=@folder

# The agents meet on the first node, at a port of this job's own.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((10000 + SLURM_JOB_ID % 20000))
start=${SLURM_RESTART_COUNT:-0}
echo "job $SLURM_JOB_ID, start $((start + 1)), on $SLURM_JOB_NODELIST, meeting at $head:$port"

# Starts of this job since its newest checkpoint: whatever ends them before the next one would end a third as well.
newest() {
    local all=("$folder"/checkpoints/step_*)
    echo "${all[-1]##*/}"
}
count=$folder/starts-without-checkpoint
before=$(newest)
starts=0
{ read -r job known starts < "$count"; } 2>/dev/null
[[ "${job-} ${known-}" == "$SLURM_JOB_ID $before" && $starts =~ ^[0-9]+$ ]] || starts=0
give_up() {
    echo "error: @most starts of job $SLURM_JOB_ID brought no new checkpoint, and a further one would bring none either;" \
        "see above what ended them, remove it (a larger launch.slurm_time, say) and submit the job again" >&2
    exit "$1"
}
[ "$starts" -lt @most ] || give_up 1
starts=$((starts + 1))
mkdir -p "$folder" && echo "$SLURM_JOB_ID $before $starts" > "$count"

# @notice seconds before the time limit Slurm sends USR1. The ranks are told to save and end, and the job goes back into
# the queue; its next start continues at the last checkpoint.
requeue=no
trap 'requeue=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 # to the step; srun itself would kill it at once
trap : TERM INT # of scancel, which tells the step as well

# The step's code goes through a file: of a child that ends while a trap runs, bash 5.2 may forget it (`wait` says -1).
ended=$(mktemp) || exit 1
{
    trap : TERM INT USR1 # srun gets them as well; this shell outlives it
    srun --nodes=@nodes --ntasks=@nodes --ntasks-per-node=1 --cpus-per-task=@cpus --kill-on-bad-exit=1 @container\
        @python -m launch.agent \
        @arguments
    echo "$?" > "$ended"
} &
step=$!
wait "$step"
while kill -0 "$step" 2>/dev/null; do # a signal ends `wait`, not the step
    wait "$step"
done
read -r code < "$ended" || code=1
rm -f "$ended"

if [ "$requeue" = yes ] && [ "$code" -ne 0 ]; then
    [ "$(newest)" != "$before" ] || [ "$starts" -lt @most ] || give_up "$code"
    scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$code"
