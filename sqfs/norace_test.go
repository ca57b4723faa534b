//go:build !race

package sqfs

const raceEnabled = false
