//go:build race

package codec

// raceEnabled is set when the race detector makes sync.Pool drop things at random.
const raceEnabled = true
