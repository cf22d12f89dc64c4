#!/usr/bin/env bash
# A SLURM of two nodes of one CPU each on this machine, for `make test-slurm`:
#
#     apt-get install slurm-wlm munge
#     tests/helpers/slurm.sh start     # does nothing if it is up
#     tests/helpers/slurm.sh stop      # cancels its jobs, ends the daemons, removes what start wrote
#
# Must be root. A machine with a slurm.conf of its own is left as it is. Tried on Debian 12 (22.05).
set -euo pipefail

MARK='# Written by tests/helpers/slurm.sh of diffem'
CONF=/etc/slurm/slurm.conf
STATE=/var/spool/diffem-slurm
HOSTS="127.0.0.1 n1 n2 $MARK"
SECONDS_TO_START=60

fail() {
    echo "tests/helpers/slurm.sh: $*" >&2
    exit 1
}

ours() {
    [ -f "$CONF" ] && [ "$(head -n 1 "$CONF")" = "$MARK" ]
}

is_up() {
    [ "$(timeout 20 sinfo --noheader --Node --states=idle,alloc,mix --format=%N 2>/dev/null | wc -l)" = 2 ]
}

write_conf() {
    local host
    host=$(hostname -s)
    # config_overrides: the sizes below stand, whatever the machine has. cred_expire: a requeued
    # job waits for these seconds before it starts again; SLURM's default is 120.
    cat >"$CONF" <<EOF
$MARK
ClusterName=diffem
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/%n
SlurmctldPidFile=$STATE/ctld.pid
SlurmdPidFile=$STATE/%n.pid
SlurmctldLogFile=$STATE/ctld.log
SlurmdLogFile=$STATE/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[7001-7002] CPUs=1 RealMemory=8000 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
}

start() {
    if [ -e "$CONF" ] && ! ours; then
        fail "$CONF is not of this script: this machine has a SLURM of its own, and is left as it is"
    fi
    if ours && is_up; then
        echo "SLURM is up already"
        return
    fi
    mkdir -p /etc/slurm "$STATE/ctld" /run/munge
    write_conf
    # torch and Lightning resolve the first node's name, and end without it.
    grep -qF "$HOSTS" /etc/hosts || echo "$HOSTS" >>/etc/hosts
    if [ ! -s /etc/munge/munge.key ]; then
        (umask 077 && head -c 1024 /dev/urandom >/etc/munge/munge.key)
    fi
    chown munge:munge /etc/munge/munge.key /run/munge
    munge --no-input >/dev/null 2>&1 || su -s /bin/sh munge -c "munged --force"
    running ctld || slurmctld
    for node in n1 n2; do
        running "$node" || slurmd -N "$node"
    done
    local end=$((SECONDS + SECONDS_TO_START))
    until is_up; do
        [ $SECONDS -lt $end ] || fail "the nodes are not up after $SECONDS_TO_START s: see $STATE/*.log"
        sleep 0.5
    done
    sinfo
}

running() {
    [ -s "$STATE/$1.pid" ] && kill -0 "$(cat "$STATE/$1.pid" 2>/dev/null)" 2>/dev/null
}

stop() {
    ours || fail "nothing to stop: $CONF is not of this script"
    timeout 20 scancel --user=root >/dev/null 2>&1 || true
    for name in n1 n2 ctld; do
        if running "$name"; then
            kill "$(cat "$STATE/$name.pid")"
            while running "$name"; do sleep 0.2; done
        fi
    done
    if [ -s /run/munge/munged.pid ]; then
        kill "$(cat /run/munge/munged.pid)" 2>/dev/null || true
    fi
    rm -rf "$CONF" "$STATE"
    # /etc/hosts may be a mount, which can be written but not replaced.
    local others
    others=$(grep -vF "$HOSTS" /etc/hosts)
    echo "$others" >/etc/hosts
    echo "SLURM is stopped"
}

[ "$(id -u)" = 0 ] || fail "must be run as root"
for program in slurmctld slurmd sinfo munged; do
    command -v "$program" >/dev/null || fail "$program is not installed: apt-get install slurm-wlm munge"
done
case "${1:-}" in
start) start ;;
stop) stop ;;
*) fail "start or stop, got '${1:-}'" ;;
esac
