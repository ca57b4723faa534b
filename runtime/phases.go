package runtime

import (
	"os"
	"time"

	"github.com/squirefs/squire/internal/wire"
)

// Phase is a part of the setup, and how long it took.
type Phase struct {
	Name string
	Took time.Duration
}

// phases add up in the order in which they come first.
type phases struct{ list []Phase }

// Fields makes it a wire.Message.
func (p *phases) Fields(c *wire.Coder) {
	wire.Slice(c, &p.list, func(c *wire.Coder, p *Phase) {
		wire.String(c, &p.Name)
		wire.Int(c, &p.Took)
	})
}

// since adds the time from start until now to a phase.
func (p *phases) since(start time.Time, name string) {
	took := time.Since(start)
	for i := range p.list {
		if p.list[i].Name == name {
			p.list[i].Took += took
			return
		}
	}
	p.list = append(p.list, Phase{name, took})
}

// phase is the part of the setup that an operation belongs to.
func (o Op) phase() string {
	switch o.Do {
	case OpUnshare, OpHostname, OpIsolate, OpScaffold:
		return "scaffold"
	case OpImage, OpDir:
		return "mount"
	case OpLayer, OpSeal:
		return "layer"
	case OpPivot, OpChdir:
		return "pivot"
	case OpDrop, OpFilter:
		return "drop"
	case OpExec:
		return "exec"
	}
	return "mounts"
}

// tellPhases sends them to the runner, behind the word that the command runs. A runner
// that is gone does not need them.
func tellPhases(runner *os.File, p *phases) { _ = writeMessage(runner, p) }

// hearPhases waits for what tellPhases sends.
func (r *Runner) hearPhases() {
	var p phases
	if err := readMessage(r.socket, &p); err == nil {
		r.Phases(p.list)
	}
}
