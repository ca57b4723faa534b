package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/squirefs/squire/runtime"
)

// startTimes measures the start of a container, for --verbose. A nil one does not.
type startTimes struct {
	begin  time.Time
	server time.Duration // until the server had understood the image
}

func (o *runOptions) timesOfStart() *startTimes {
	if !o.verbose {
		return nil
	}
	return &startTimes{begin: time.Now()}
}

// served is called when the server answers.
func (s *startTimes) served() {
	if s != nil {
		s.server = time.Since(s.begin)
	}
}

// report is what the runner calls when the command was started.
func (s *startTimes) report() func([]runtime.Phase) {
	if s == nil {
		return nil
	}
	return func(phases []runtime.Phase) {
		total := time.Since(s.begin)
		fmt.Fprintf(os.Stderr, "squire: %s; the command runs after %s\n", s.line(phases), milliseconds(total))
	}
}

func (s *startTimes) line(phases []runtime.Phase) string {
	if s.server > 0 {
		phases = append([]runtime.Phase{{Name: "server", Took: s.server}}, phases...)
	}
	var words []string
	for _, p := range phases {
		words = append(words, p.Name+" "+milliseconds(p.Took))
	}
	return strings.Join(words, ", ")
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000)
}
