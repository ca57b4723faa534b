// Package runtime runs a command in a root file system as an ordinary user.
//
// The work is split in two. [Plan] turns what was asked for (a [Spec]) and
// what the host has (a [Host]) into a flat list of operations ([Op]) without
// touching the system, so that it can be tested, printed and compared.
// apply.go walks that list once and is the only file that mounts.
//
// Three processes take part, all of the same binary:
//
//	runner    [Runner], outside the container: starts the init stage, forwards
//	          signals, passes on the exit status
//	init      [Init], in the container's namespaces: applies the plan, starts
//	          the command, reaps, and ends what is left when the command ends
//	command   the user's program, direct child of init, as are those that
//	          [Exec] adds
//
// Or there is no command: [Runner.Hold] has init send the container's namespaces, for
// processes that somebody else starts, and end.
//
// Runner and init hold the two ends of a socket and are both subreapers. When
// the runner dies, even by SIGKILL, init sees the end of the socket and ends
// every process of the container; when init dies, the kernel ends the command
// (PR_SET_PDEATHSIG) and hands everything below to the runner, which ends it.
// The mounts go with the last process of the mount namespace, so nothing is
// ever left to clean up by name.
//
// The package knows nothing of images. A root file system is a directory, or
// whatever the caller's [MountFunc] mounts on the directory it is given.
package runtime
