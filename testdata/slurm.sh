#!/bin/sh
# slurm.sh - a real Slurm cluster of several nodes on one machine, for tests. Needs root, slurm-wlm and munge.
#
#   usage: slurm.sh start DIR [NAME=VALUE…]   start everything below DIR and wait until all nodes are idle
#          slurm.sh stop DIR                  cancel what runs, and stop what start started
#          slurm.sh restart DIR DAEMON [kill] restart slurmctld or a node's slurmd (n1, n2, …), with kill by SIGKILL
#          slurm.sh env DIR                   print the line to eval before srun, sbatch or sinfo
#
# The settings, with their defaults:
#
#   nodes=2 cpus=16 gpus=0    how many nodes, and what each has: GPUs are /dev/nvidiaN of the node, without a driver
#   memory=4000               MiB a node, of which a job gets its CPUs' share, or what it asks for
#   port=26817                slurmctld's; node N has port+N. Clusters that run at once need ports 100 apart.
#   cgroup=auto               yes, no, or where the machine allows it: steps in cgroups, with devices and memory confined
#   prologflags= prolog= epilog= taskprolog= taskepilog= accounting=   as in slurm.conf
#   conf=FILE                 lines to add to slurm.conf
#
# slurmstepd and srun read DIR/plugstack.conf afresh for each step, slurmd reads it when it starts. Logs are in DIR/log.
# munged is started when there is none, and stays.
set -eu
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin

usage() {
	sed -n '3,8s/^#  *//p' "$0" >&2
	exit 2
}

fail() {
	echo "slurm.sh: $*" >&2
	exit 1
}

# settings reads NAME=VALUE arguments; each name is known, so that a misspelt one is not overlooked.
settings() {
	nodes=2 cpus=16 gpus=0 memory=4000 port=26817 cgroup=auto
	prologflags='' prolog='' epilog='' taskprolog='' taskepilog='' accounting='' conf=''
	for setting; do
		case $setting in
		nodes=* | cpus=* | gpus=* | memory=* | port=*)
			case ${setting#*=} in '' | *[!0-9]*) fail "$setting: not a number" ;; esac
			eval "${setting%%=*}=\${setting#*=}" ;;
		cgroup=* | prologflags=* | prolog=* | epilog=* | taskprolog=* | taskepilog=* | accounting=* | conf=*)
			eval "${setting%%=*}=\${setting#*=}" ;;
		*) fail "$setting: unknown setting" ;;
		esac
	done
}

# wait_for runs a command every 0.1 s until it succeeds, at most $1 times.
wait_for() {
	tries=$1
	shift
	while ! "$@"; do
		tries=$((tries - 1))
		[ $tries -gt 0 ] || return 1
		sleep 0.1
	done
}

munge_works() { munge -n </dev/null >/dev/null 2>&1; }

# start_munge starts the authentication service that all clusters of a machine share.
start_munge() {
	munge_works && return
	[ -s /etc/munge/munge.key ] || mungekey
	install -d -o munge -g munge -m 0755 /run/munge
	install -d -o munge -g munge -m 0700 /var/log/munge /var/lib/munge
	chown munge: /etc/munge /etc/munge/munge.key
	setpriv --reuid munge --regid munge --clear-groups munged </dev/null >/dev/null 2>&1 || : # another start may be first
	wait_for 300 munge_works || fail "munged does not answer"
}

# cgroups_work says whether the hierarchies are there that Slurm confines and kills steps with.
cgroups_work() {
	for controller in freezer devices memory cpuset; do
		[ -w /sys/fs/cgroup/$controller/cgroup.procs ] || return 1
	done
}

# write_devices says what slurmd finds in the /dev that start_node makes.
write_devices() {
	rm -f "$dir/gres.conf"
	[ "$gpus" -gt 0 ] || return 0
	echo "NodeName=n[1-$nodes] Name=gpu File=/dev/nvidia[0-$((gpus - 1))]" >"$dir/gres.conf"
	echo "$gpus" >"$dir/gpus"
	write_mpi
}

# write_mpi gives PMIx a directory of each node's own: the names in it are those of steps, and in /tmp one node of a step
# would be in the way of the next.
write_mpi() { echo "PMIxCliTmpDirBase=$dir/pmix" >"$dir/mpi.conf"; }

# start_node starts slurmd in a mount namespace of its own, with a /dev that has the machine's nodes and its GPUs: jobs
# see what they would on a node with GPUs, and the machine's /dev stays as it is.
start_node() {
	# Where mounts are not shared (mount_namespaces(7)), what somebody has mounted just now would not go in here when they
	# unmount it, and whoever serves it would wait for this node's end.
	sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .* - fuse[. ].*/\1/p' /proc/self/mountinfo | while read -r at; do
		umount -l "$(printf '%b' "$at")" 2>/dev/null || :
	done
	mkdir -p "$dir/dev"
	mount -t tmpfs -o mode=0755 "dev-$1" "$dir/dev"
	for file in /dev/*; do
		target=$dir/dev/${file#/dev/}
		case $file in
		/dev/nvidia*) ;; # another machine's GPUs are not this node's
		*)
			if [ -d "$file" ] && [ ! -L "$file" ]; then
				mkdir "$target"
				mount --rbind "$file" "$target"
			else
				cp -a "$file" "$target" # ptmx looks for pts beside itself, which a bind mount would not have
			fi ;;
		esac
	done
	gpu=0
	while [ $gpu -lt "$(cat "$dir/gpus")" ]; do
		mknod -m 0666 "$dir/dev/nvidia$gpu" c 195 $gpu # the major number is NVIDIA's
		gpu=$((gpu + 1))
	done
	mount --move "$dir/dev" /dev
	mkdir -p "$dir/pmix"
	mount -t tmpfs -o mode=1777 "pmix-$1" "$dir/pmix" # see write_mpi
	exec slurmd -N "$1"
}

write_cgroups() {
	case $cgroup in
	auto) cgroups_work && cgroup=yes || cgroup=no ;;
	yes) cgroups_work || fail "the machine's cgroups cannot be used" ;;
	no) ;;
	*) fail "cgroup=$cgroup: neither auto, yes nor no" ;;
	esac
	# Cores are not confined: the nodes have more of them than the machine.
	printf '%s\n' CgroupPlugin=cgroup/v1 ConstrainDevices=yes ConstrainRAMSpace=yes ConstrainCores=no >"$dir/cgroup.conf"
	[ $cgroup = yes ] || rm -f "$dir/cgroup.conf"
}

# option prints a line of slurm.conf when its value is not empty.
option() { [ -z "$2" ] || echo "$1=$2"; }

write_conf() {
	host=$(hostname -s)
	# Jobs look for a node by its name.
	for name in "$host" $(seq -f n%g "$nodes"); do
		getent hosts "$name" >/dev/null || echo "127.0.0.1 $name" >>/etc/hosts
	done
	cat <<-CONF
		ClusterName=lab$port
		SlurmctldHost=$host
		SlurmctldPort=$port
		FirstJobId=$port
		SlurmUser=root
		SlurmdUser=root
		AuthType=auth/munge
		SlurmctldPidFile=$dir/slurmctld.pid
		SlurmdPidFile=$dir/slurmd-%n.pid
		SlurmdSpoolDir=$dir/spool-%n
		StateSaveLocation=$dir/state
		SlurmctldLogFile=$dir/log/slurmctld.log
		SlurmdLogFile=$dir/log/%n.log
		SelectType=select/cons_tres
		SelectTypeParameters=CR_Core_Memory
		DefMemPerCPU=$((memory / cpus))
		ReturnToService=2
		SlurmdParameters=config_overrides
		PlugStackConfig=$dir/plugstack.conf
		KillWait=5
		MinJobAge=60
	CONF
	if [ $cgroup = yes ]; then
		printf '%s\n' ProctrackType=proctrack/cgroup TaskPlugin=task/cgroup
	else
		printf '%s\n' ProctrackType=proctrack/linuxproc TaskPlugin=task/none
	fi
	option PrologFlags "$prologflags"
	option Prolog "$prolog"
	option Epilog "$epilog"
	option TaskProlog "$taskprolog"
	option TaskEpilog "$taskepilog"
	option AccountingStorageType "$accounting"
	gres=''
	[ "$gpus" -eq 0 ] || gres="Gres=gpu:$gpus"
	[ "$gpus" -eq 0 ] || echo GresTypes=gpu
	node=1
	while [ $node -le "$nodes" ]; do
		mkdir -p "$dir/spool-n$node"
		echo "NodeName=n$node NodeHostname=$host Port=$((port + node)) CPUs=$cpus RealMemory=$memory $gres State=UNKNOWN"
		node=$((node + 1))
	done
	echo "PartitionName=main Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE OverSubscribe=YES:4 State=UP"
	[ -z "$conf" ] || cat "$conf"
}

all_idle() { [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = "$nodes" ]; }
answers() { scontrol ping >/dev/null 2>&1; }
none_runs() { [ -z "$(squeue -h -o %i 2>/dev/null)" ]; }
all_known() { answers && [ -z "$(sinfo -h -N -t unknown,no_respond,down -o %n 2>/dev/null)" ]; }
ended() { ! kill -0 "$1" 2>/dev/null; }

# start_daemon starts one by name. Descriptors of the caller's would keep its pipes open for as long as the daemon lives.
start_daemon() {
	case $1 in
	slurmctld) slurmctld </dev/null >>"$dir/log/slurmctld.out" 2>&1 ;;
	*)
		daemon='slurmd -N'
		[ ! -e "$dir/gres.conf" ] || daemon="unshare --mount --propagation slave $0 node $dir"
		$daemon "$1" </dev/null >>"$dir/log/$1.out" 2>&1 ;;
	esac
}

pidfile() {
	case $1 in
	slurmctld) echo "$dir/slurmctld.pid" ;;
	*) echo "$dir/slurmd-$1.pid" ;;
	esac
}

# stop_daemons stops those whose pid files are given: all are told first, as each takes a second or two.
stop_daemons() {
	signal=$1
	shift
	pids=
	# The files go when their daemons do.
	for file; do
		pid=$(cat "$file" 2>/dev/null || :)
		[ -n "$pid" ] || continue
		kill "-$signal" "$pid" 2>/dev/null || :
		pids="$pids $pid"
	done
	for pid in $pids; do
		wait_for 100 ended "$pid" || kill -KILL "$pid" 2>/dev/null || :
	done
	rm -f "$@"
}

start() {
	settings "$@"
	for tool in slurmctld slurmd munge; do
		command -v $tool >/dev/null || fail "$tool is not installed"
	done
	[ ! -s "$dir/slurmctld.pid" ] || ended "$(cat "$dir/slurmctld.pid")" || fail "$dir: a cluster runs there already"
	mkdir -p "$dir/state" "$dir/log"
	chmod 0755 "$dir"
	[ -e "$dir/plugstack.conf" ] || : >"$dir/plugstack.conf"
	start_munge
	write_devices
	write_cgroups
	write_conf >"$dir/slurm.conf.new"
	mv "$dir/slurm.conf.new" "$dir/slurm.conf"
	start_daemon slurmctld
	node=1
	while [ $node -le "$nodes" ]; do
		start_daemon n$node
		node=$((node + 1))
	done
	wait_for 900 all_idle || {
		tail -n 5 "$dir"/log/*.log >&2
		fail "the nodes do not come up, see $dir/log"
	}
}

stop() {
	if answers; then
		squeue -h -o %A 2>/dev/null | sort -u | xargs -r scancel 2>/dev/null || :
		wait_for 150 none_runs || echo "slurm.sh: jobs do not end: $(squeue -h -o %i | tr '\n' ' ')" >&2
	fi
	stop_daemons TERM "$dir"/slurmd-*.pid "$dir/slurmctld.pid"
}

[ $# -ge 2 ] || usage
verb=$1
dir=$(realpath -m "$2")
shift 2
export SLURM_CONF="$dir/slurm.conf"
case $verb in
start) start "$@" ;;
stop) stop ;;
restart)
	[ $# -ge 1 ] || usage
	signal=TERM
	[ "${2-}" != kill ] || signal=KILL
	stop_daemons $signal "$(pidfile "$1")"
	start_daemon "$1"
	wait_for 900 all_known || fail "$1 does not come back, see $dir/log"
	;;
node) start_node "$1" ;; # called by start_daemon
env) echo "export SLURM_CONF=$dir/slurm.conf" ;;
*) usage ;;
esac
