package runtime

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Config is how an image wants its commands to be run. Everything in it is the
// image's own, and not trusted.
type Config struct {
	Env        []string // NAME=VALUE; nil: the image's /etc/environment says
	Entrypoint []string // the program, with its first arguments
	Cmd        []string // further arguments, or the program if there is no Entrypoint
	WorkingDir string   // "" if it names none
	Digest     string   // of what it was made from, for records; "" if that is not known
}

// ConfigFunc returns what an image says about how its commands are run, nil if it
// says nothing. It is called in the init stage, inside the new root. read returns a
// file of that, which has at most 1 MiB; one that is not there or not plain is an error.
type ConfigFunc func(read func(name string) ([]byte, error)) (*Config, error)

// maxConfig bounds a file that is read for a Config, in bytes.
const maxConfig = 1 << 20

// readConfig asks for the configuration. An image whose configuration cannot be
// understood is run as one without.
func readConfig(ask ConfigFunc, image string) *Config {
	if ask == nil {
		return new(Config)
	}
	c, err := ask(func(name string) ([]byte, error) { return readPlain(name, maxConfig) })
	if err == nil && c != nil {
		err = c.check()
	}
	if err != nil {
		fail(0, fmt.Errorf("%s: %w; its configuration is not used", image, err))
	}
	if err != nil || c == nil {
		return new(Config)
	}
	return c
}

// check reports what the kernel would not take.
func (c *Config) check() error {
	for _, s := range slices.Concat(c.Env, c.Entrypoint, c.Cmd, []string{c.WorkingDir}) {
		if strings.ContainsRune(s, 0) {
			return errors.New("its configuration holds a NUL byte")
		}
	}
	return nil
}

// chdir is the operation that enters the working directory, decided.
func (c *Config) chdir(op Op) Op {
	if slices.Contains(op.Flags, unlessConfigured) && c.WorkingDir != "" {
		op.Target = path.Join("/", c.WorkingDir)
	}
	return op
}

// command is the command of an OpExec, decided.
func (c *Config) command(op Op) []string {
	switch own := slices.Concat(c.Entrypoint, c.Cmd); {
	case slices.Contains(op.Flags, unlessConfigured) && len(own) > 0:
		return own
	case slices.Contains(op.Flags, afterEntrypoint):
		return slices.Concat(c.Entrypoint, op.Args)
	}
	return op.Args
}

// environ are the variables that the image sets for its programs.
func (c *Config) environ() []string {
	if c.Env == nil {
		return imageEnvironment()
	}
	var env envList
	for _, kv := range c.Env {
		if name, _, ok := strings.Cut(kv, "="); ok && name != "" {
			env.set(kv)
		}
	}
	return env.list
}

// imageEnvironment reads the variables as enroot keeps them.
func imageEnvironment() []string {
	text, err := readPlain("/etc/environment", maxConfig)
	if err != nil {
		return nil
	}
	return parseEnvironment(text)
}

// readPlain reads a file of the image, or of whatever the user has bound over it: it
// may be a pipe, a device, endless. Only a plain one of at most limit bytes counts, and
// opening it never waits.
func readPlain(name string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > limit {
		return nil, fmt.Errorf("%s: not a plain file of at most %d bytes", name, limit)
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1)) // those of /proc say that they are empty
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return text, err
}
