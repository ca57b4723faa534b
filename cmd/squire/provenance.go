package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/sqfs/oci"
)

// What inspect tells people of a record, which an image may fill with anything. --json has
// all of it.
const (
	maxLabelsTold = 20
	maxValueTold  = 200 // bytes of a value
)

// imageConfig is the init stage's runtime.ConfigFunc: what an image says about how it is
// run is in its record.
func imageConfig(read func(name string) ([]byte, error)) (*runtime.Config, error) {
	rec, err := oci.FindRecord(func(name string) ([]byte, error) { return read("/" + name) })
	if err != nil || rec == nil {
		return nil, plain(err)
	}
	c := &runtime.Config{Entrypoint: rec.Config.Entrypoint, Cmd: rec.Config.Cmd, WorkingDir: rec.Config.WorkingDir, Digest: rec.Digest}
	if rec.Version > 0 { // one of enroot's has its variables only in /etc/environment
		c.Env = append([]string{}, rec.Config.Env...)
	}
	return c, nil
}

// printRecord tells where an image came from, and how it is to be run.
func printRecord(rec *oci.Record, row func(string, any)) {
	some := func(name, value string) {
		if value != "" {
			row(name, cut(value))
		}
	}
	some("Imported from", rec.Source)
	some("Digest", rec.Digest)
	some("Platform", rec.Platform)
	if !rec.Created.IsZero() {
		row("Image created", rec.Created.UTC().Format(time.RFC3339))
	}
	if len(rec.Layers) > 0 {
		row("Layers", fmt.Sprintf("%d (%s compressed)", len(rec.Layers), sizeString(layerBytes(rec))))
	}
	c := &rec.Config
	some("Entrypoint", quoteWords(c.Entrypoint))
	some("Command", quoteWords(c.Cmd))
	some("Working dir", c.WorkingDir)
	some("User", c.User)
	if len(c.Env) > 0 {
		row("Environment", plural(int64(len(c.Env)), "variable"))
	}
	some("Ports", strings.Join(slices.Sorted(maps.Keys(c.ExposedPorts)), " "))
	some("Volumes", strings.Join(slices.Sorted(maps.Keys(c.Volumes)), " "))
	for i, name := range slices.Sorted(maps.Keys(c.Labels)) {
		if i == maxLabelsTold {
			row("Label", andMore(int64(len(c.Labels)-i)))
			break
		}
		row("Label", cut(name+"="+c.Labels[name]))
	}
}

// layerBytes is the size of all layers, compressed.
func layerBytes(rec *oci.Record) (n int64) {
	for _, l := range rec.Layers {
		n += l.Size
	}
	return n
}

// cut is a value of a record for people: printable, and without its end if it is long.
func cut(s string) string {
	if len(s) <= maxValueTold {
		return printable(s)
	}
	return printable(strings.ToValidUTF8(s[:maxValueTold], "")) + fmt.Sprintf("…(%d bytes)", len(s))
}

// quoteWords writes a command so that its words can be told apart.
func quoteWords(words []string) string {
	var b strings.Builder
	for i, w := range words {
		if b.Len() > maxValueTold {
			b.WriteString(" " + andMore(int64(len(words)-i)))
			break
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		if w == "" || strings.ContainsAny(w, " \t\n'\"\\$`*?[]#~&|;<>(){}!") {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		b.WriteString(w)
	}
	return b.String()
}
