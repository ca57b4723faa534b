//go:build race

package runtime

// oneThread: the race detector is written in C, and a binary with C in it
// cannot make a system call in all of its threads.
const oneThread = true
