#!/bin/sh
# trace.sh SOURCE: strace and gdb on a program, on its child, and on one that runs already.
export DEBUGINFOD_URLS=
w=$(mktemp -d) && cc -g -o "$w/program" "$1" || exit
strace -f -o "$w/log" -e trace=execve,exit_group,wait4,%process "$w/program"
echo "strace $? $(grep -c 'exit_group(0)' "$w/log") $(grep -c 'exit_group(3)' "$w/log")"
sleep 100 & pid=$!
: >"$w/said"
strace -o "$w/attached" -p $pid 2>"$w/said" & tracer=$!
until grep -q attached "$w/said"; do sleep 0.05; done
kill -TERM $pid && wait $tracer; grep -c 'killed by SIGTERM' "$w/attached"
gdb -q -batch -nx -ex 'set follow-fork-mode child' -ex 'break square' -ex run -ex bt -ex 'print x * 2' -ex delete -ex 'print square(9)' -ex c "$w/program" 2>&1 |
	sed -n -E 's/ \(process [0-9]*\)//; s, at /.*/, at ,; s/0x[0-9a-f]* in //; /^#[01]|^\$|^child|exited/p'
sleep 100 & pid=$!
until grep -q sleep /proc/$pid/comm; do sleep 0.05; done
gdb -q -batch -nx -p $pid -ex 'info inferiors' 2>&1 | grep -c "^[*] 1 *process $pid "
kill $pid
rm -r "$w"
