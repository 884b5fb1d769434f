#!/bin/bash
# A real Slurm of one node, run by hand or by a test, in a folder of its own; needs root and Debian's slurm-wlm and munge.
#   slurm_one_node.sh start FOLDER [PORT]    configures and starts munged, slurmctld (at PORT) and slurmd (at PORT + 1);
#                                            prints what SLURM_CONF is to be
#   slurm_one_node.sh stop FOLDER            ends exactly those three processes
set -euo pipefail
action=$1
folder=$(realpath -m "$2")
port=${3:-16817}

stop() {
    for name in slurmd slurmctld munged; do
        if [ -s "$folder/$name.pid" ]; then kill "$(cat "$folder/$name.pid")" 2>/dev/null || true; fi
    done
}

configure() {
    local cores memory host
    cores=$(getconf _NPROCESSORS_ONLN) # nproc would obey OMP_NUM_THREADS
    memory=$(awk '/MemTotal/ { print int($2 / 1024 * 0.8) }' /proc/meminfo)
    host=$(hostname -s)
    cat >"$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$port
SlurmdPort=$((port + 1))
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
ReturnToService=2
KillWait=30
MailProg=/bin/true
PlugStackConfig=$folder/plugstack.conf
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
CONF
    touch "$folder/plugstack.conf"
}

start() {
    mkdir -p "$folder/state" "$folder/spool"
    chmod 755 "$folder"
    head -c 1024 /dev/urandom >"$folder/munge.key"
    chmod 600 "$folder/munge.key"
    configure
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -c
    slurmd -c
    for _ in $(seq 60); do
        if sinfo --noheader --format=%T 2>/dev/null | grep -q idle; then
            echo "$SLURM_CONF"
            return
        fi
        sleep 0.5
    done
    echo "the node did not become idle; see $folder/slurmctld.log and slurmd.log" >&2
    stop
    exit 1
}

case $action in
start) start ;;
stop) stop ;;
*)
    echo "usage: $0 start FOLDER [PORT] | stop FOLDER" >&2
    exit 2
    ;;
esac
