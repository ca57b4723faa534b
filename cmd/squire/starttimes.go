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
	begin time.Time
	image runtime.Phase // until the image was served
}

func (o *runOptions) timesOfStart() *startTimes {
	if !o.verbose {
		return nil
	}
	return &startTimes{begin: time.Now()}
}

// served is called when the image is served, with the name of who does.
func (s *startTimes) served(by string) {
	if s != nil {
		s.image = runtime.Phase{Name: by, Took: time.Since(s.begin)}
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
	if s.image.Name != "" {
		phases = append([]runtime.Phase{s.image}, phases...)
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
