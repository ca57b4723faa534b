package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// sample is one measurement.
type sample struct {
	wall time.Duration
	cpu  time.Duration // that all processors together were busy
}

// cpuSource is where CPU time comes from.
const cpuSource = "/proc/stat"

// stopwatch takes a sample.
type stopwatch struct {
	start time.Time
	busy  time.Duration
}

func startWatch() (stopwatch, error) {
	busy, err := MachineBusy()
	return stopwatch{time.Now(), busy}, err
}

// stop may be called once more later: the sample is that from the start.
func (w stopwatch) stop() (sample, error) {
	wall := time.Since(w.start)
	busy, err := MachineBusy()
	return sample{wall, max(0, busy-w.busy)}, err
}

// MachineBusy is the CPU time that the machine has used since it was started.
func MachineBusy() (time.Duration, error) {
	text, err := os.ReadFile(cpuSource)
	if err != nil {
		return 0, err
	}
	return parseBusy(string(text))
}

// parseBusy adds up user, nice, system, irq and softirq of the first line of /proc/stat (proc_stat(5)), which are in
// 1/100 s on all processors that squire runs on. Time of guests is in user already; stolen time is nobody's here.
func parseBusy(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("%s starts with %q", cpuSource, line)
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", cpuSource, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil
}
