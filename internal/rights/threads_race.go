//go:build race

package rights

// OneThread: the race detector is written in C, and a binary with C in it
// cannot make a system call in all of its threads.
const OneThread = true
