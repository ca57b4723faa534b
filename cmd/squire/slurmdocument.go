package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// slurmDocument is what Slurm's plugin says of a step: as it is at the start of "squire slurm check", and as a part of the
// order of "squire slurm step". All of it is the user's, but for Arguments, which the plugin has from plugstack.conf. The
// plugin understands nothing of it.
//
// Its strings are bytes, which need not be UTF-8: the plugin writes each byte as the character of that number. They are
// bytes again after readSlurmDocument.
type slurmDocument struct {
	Version   int                 `json:"version"`
	Given     []slurmGiven        `json:"given"`  // options, in the order in which Slurm told of them
	Plugin    []string            `json:"plugin"` // arguments, NAME=VALUE, from plugstack.conf
	Options   map[string]slurmRaw `json:"-"`      // made of Given, by name, without "container-"
	Arguments map[string]string   `json:"-"`      // made of Plugin
	meant     map[string]string   // see slurmMeantVariable
	Env       []string            `json:"env"`     // of the job, or of srun
	Cwd       string              `json:"cwd"`     // of the step; relative paths are taken from it
	Batch     bool                `json:"batch"`   // of an order: the step is a batch script
	Context   string              `json:"context"` // of check: local (srun) or allocator (sbatch, salloc)
	Program   string              `json:"program"` // of check: srun, sbatch or salloc
}

// slurmVersion is the one of the documents that are understood here.
const slurmVersion = 2

// maxSlurmDocument bounds a document, in bytes: an environment may have several MiB.
const maxSlurmDocument = 32 << 20

// Contexts of a slurmDocument.
const (
	contextLocal     = "local"
	contextAllocator = "allocator"
)

// slurmRaw is an option as it was given: each value once, in the order in which they came. That of an option without an
// argument is "true", or "false" for its opposite.
type slurmRaw []string

// toBytes makes the strings bytes, and Options and Arguments of them.
func (d *slurmDocument) toBytes() {
	for i := range d.Given {
		d.Given[i].Value = slurmByte(d.Given[i].Value)
	}
	slurmBytes(d.Plugin)
	slurmBytes(d.Env)
	d.Cwd = slurmByte(d.Cwd)
	d.gather()
}

// slurmBytes makes strings of the plugin's bytes.
func slurmBytes(list []string) {
	for i, s := range list {
		list[i] = slurmByte(s)
	}
}

// slurmByte makes a string of the plugin's bytes. One that is not the plugin's stays as it is.
func slurmByte(s string) string {
	plain := true
	for _, c := range s {
		if c > 0xff {
			return s
		}
		plain = plain && c < 0x80
	}
	if plain {
		return s
	}
	b := make([]byte, 0, len(s))
	for _, c := range s {
		b = append(b, byte(c))
	}
	return string(b)
}

// readSlurmDocument reads a document into d, a *slurmDocument or what has one in it.
func readSlurmDocument(from io.Reader, d interface{ toBytes() }) error {
	text, err := io.ReadAll(io.LimitReader(from, maxSlurmDocument+1))
	if err == nil && len(text) > maxSlurmDocument {
		err = fmt.Errorf("more than %s", sizeString(maxSlurmDocument))
	}
	if err == nil {
		err = json.Unmarshal(text, d)
	}
	if err != nil {
		return fmt.Errorf("what the Slurm plugin says: %w", err)
	}
	d.toBytes()
	return nil
}

// check reports what no plugin would have written, or one for another squire.
func (d *slurmDocument) check() error {
	if d.Version != slurmVersion {
		return fmt.Errorf("the Slurm plugin is for another squire: its version is %d, and not %d", d.Version, slurmVersion)
	}
	for name, values := range d.Options {
		if !isSlurmOption(name) {
			return fmt.Errorf("the Slurm plugin is for another squire: there is no --container-%s", printable(name))
		}
		for _, v := range values {
			if strings.ContainsRune(v, 0) {
				return errors.New("an option holds a NUL byte")
			}
		}
	}
	return nil
}

// lookup finds a variable as os.LookupEnv does; the last one counts, as in bash.
func (d *slurmDocument) lookup(name string) (value string, ok bool) {
	for _, kv := range d.Env {
		if n, v, is := strings.Cut(kv, "="); is && n == name {
			value, ok = v, true
		}
	}
	return value, ok
}
