//go:build !race

package runtime

// oneThread: rights may be given up by the calling thread alone. Never but
// under the race detector.
const oneThread = false
