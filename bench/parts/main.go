// Command parts compares parts of squire with what others have for them, and needs squire's sources and tools that make
// images. Its first argument is the name of a comparison, see commands. Whole mounts are compared by "squire bench".
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/squirefs/squire/bench"
)

// commands are the comparisons. They take the arguments behind their name.
var commands = map[string]func(ctx context.Context, args []string) error{
	"codec":    codec,
	"metadata": metadata,
	"inodes":   inodes,
	"import":   imports,
	"results":  results,
	"pack":     pack,
	"service":  service,
	"slurm":    slurm,
	"run":      containers,
}

func main() {
	if os.Args[0] == bench.ChildName {
		os.Exit(bench.Child(os.Args[1:], os.Stdout, os.Stderr))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "parts:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 || commands[args[0]] == nil {
		var names []string
		for name := range commands {
			names = append(names, name)
		}
		slices.Sort(names)
		return fmt.Errorf("usage: parts %s [flags]", strings.Join(names, "|"))
	}
	return commands[args[0]](ctx, args[1:])
}
