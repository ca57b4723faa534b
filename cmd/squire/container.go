package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/squirefs/squire/runtime/container"
)

func containerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "container",
		Short: "List, save and remove named containers",
		Long: `List, save and remove the containers that "squire run --name" and Slurm's --container-name
make: an image and a writable layer over it, which stays.

They are kept for each user in /var/tmp/squire-UID of the node, or where SQUIRE_DATA or
the site says: a directory on a local disk that belongs to the user alone.`,
		Args: needCommand,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	cmd.AddCommand(containerListCommand(), containerRemoveCommand(), containerSaveCommand())
	return cmd
}

// existingStore opens the store if there is one.
func existingStore() (*container.Store, error) {
	dir, err := dataDir()
	if err != nil {
		return nil, err
	}
	s, err := container.OpenExisting(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return s, err
}

// completeContainers completes names of containers.
func completeContainers(_ *cobra.Command, _ []string, _ string) (names []string, _ cobra.ShellCompDirective) {
	s, err := existingStore()
	if err != nil || s == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, _ := s.List()
	for _, i := range all {
		names = append(names, i.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func containerListCommand() *cobra.Command {
	var asJSON, quiet bool
	cmd := &cobra.Command{
		Use:     "list [flags]",
		Aliases: []string{"ls"},
		Short:   "List named containers",
		Long: `List the named containers of this user on this node: NAME, whether it runs, and by which
processes it is kept running, when it was started last, and the IMAGE below its layer.`,
		Args:              needArgs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := existingStore()
			if err != nil {
				return err
			}
			all := []*container.Info{}
			if s != nil {
				if all, err = s.List(); err != nil {
					return err
				}
			}
			return printContainers(c.OutOrStdout(), all, asJSON, quiet)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	cmd.MarkFlagsMutuallyExclusive("json", "quiet")
	return cmd
}

func printContainers(w io.Writer, all []*container.Info, asJSON, quiet bool) error {
	if asJSON {
		if all == nil {
			all = []*container.Info{}
		}
		for _, i := range all {
			if i.PIDs == nil {
				i.PIDs = []int{} // as other empty lists: jq '.[].pids[]' stops at null
			}
		}
		return printJSON(w, all)
	}
	if quiet || len(all) == 0 {
		for _, i := range all {
			if _, err := fmt.Fprintln(w, i.Name); err != nil {
				return err
			}
		}
		return nil
	}
	out := &errWriter{w: w}
	t := newTable(out, []string{"NAME", "RUNS", "STARTED", "IMAGE"})
	for _, i := range all {
		runs, started, image := "no", "", ""
		if i.Running {
			runs = "yes"
		}
		if len(i.PIDs) > 0 {
			runs = fmt.Sprint(i.PIDs[0])
		}
		if i.Record != nil {
			started, image = i.Record.Started.Local().Format(time.DateTime), i.Record.Image
			if i.Record.Source != "" {
				image = i.Record.Source
			}
		}
		t.AppendRow(table.Row{printable(i.Name), runs, started, printable(image)})
	}
	t.Render()
	return out.err
}

func containerRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"remove"},
		Short:   "Remove named containers",
		Long: `Remove named containers with their layers. The images stay. A container that runs is not
removed.

Exit status: 0 if all were removed, 1 if one was not there or runs, 125 if it failed.`,
		Args:              needArgs(1, -1),
		ValidArgsFunction: completeContainers,
		RunE: func(c *cobra.Command, names []string) error {
			s, err := existingStore()
			if err != nil {
				return err
			}
			defer dropEmptyStore()
			var status error
			for _, name := range names {
				err := fmt.Errorf("container %s: %w", printable(name), container.ErrNone)
				if s != nil {
					err = s.Remove(c.Context(), name)
				}
				if err != nil {
					fmt.Fprintln(c.ErrOrStderr(), "squire:", printable(err.Error()))
					status = exitError(1)
				}
			}
			return status
		},
	}
}

func containerSaveCommand() *cobra.Command {
	var o struct {
		packFlags
		force, quiet, json bool
	}
	cmd := &cobra.Command{
		Use:   "save [flags] NAME FILE",
		Short: "Save a named container as an image",
		Long: `Save a named container as a squashfs image: what its command saw, without what was mounted
there. How the container image wants its commands to be run stays in it.

What was not changed is copied from the image as it is, compressed, in its order. Another
--comp, --level or --block-size makes everything new. Owners are the image's; what
was made in the container belongs to root, as it looks for who runs it. For root
they are what they are.

FILE appears complete or not at all. A file that has the name already is an error unless
--force replaces it. A container that runs can be saved, but what is written to it
at this time may be in the image or not; files that changed while they were read are named.`,
		Example: `  squire run --name dev debian.sqsh -- make install
  squire container save dev debian-dev.sqsh`,
		Args: needArgs(2, 2),
		ValidArgsFunction: func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return completeContainers(c, args, word)
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
	f := cmd.Flags()
	o.AddFlags(f)
	f.BoolVarP(&o.force, "force", "f", false, "replace a file of that name")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress and no summary, only errors")
	f.BoolVar(&o.json, "json", false, "print a summary as JSON")
	_ = cmd.RegisterFlagCompletionFunc("comp", completeCompressor) // fails for unknown flags only
	cmd.RunE = func(c *cobra.Command, args []string) error {
		p, err := o.options()
		if err != nil {
			return err
		}
		order := &saveOrder{Output: args[1], Force: o.force, Quiet: o.quiet || o.json, Pack: p}
		order.Alike = !f.Changed("comp") && !f.Changed("level") && !f.Changed("block-size")
		if order.Alike {
			order.Pack.Level = 0
		}
		sum, err := saveNamed(c.Context(), args[0], order)
		if err == nil && o.json {
			err = printJSON(c.OutOrStdout(), sum)
		}
		if err == nil && sum.Changed > 0 {
			err = exitError(1)
		}
		return err
	}
	return cmd
}

// saveNamed saves a container by its name.
func saveNamed(ctx context.Context, name string, order *saveOrder) (*saveSummary, error) {
	ctx, stop := untilSignal(ctx)
	defer stop()
	s, err := existingStore()
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, fmt.Errorf("container %s: %w", printable(name), container.ErrNone)
	}
	c, err := s.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return order.of(ctx, c, c.Record(), os.Stderr)
}
