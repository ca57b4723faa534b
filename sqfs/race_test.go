//go:build race

package sqfs

// raceEnabled is set when the race detector makes sync.Pool drop things at random.
const raceEnabled = true
