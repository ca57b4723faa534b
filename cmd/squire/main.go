// Command squire runs commands inside squashfs images, mounts images, makes them, looks
// into them and unpacks them, as an ordinary user.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/squirefs/squire/bench"
	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/fusefs/noded/mounter"
	nodeserver "github.com/squirefs/squire/fusefs/noded/server"
	"github.com/squirefs/squire/runtime"
)

func main() {
	if run := stageOf(os.Args[0]); run != nil {
		os.Exit(run())
	}
	os.Exit(execute(os.Args[1:]))
}

// stageOf returns what this program is to do under another name than its own, as which
// it starts itself; nil if name is none of these. They come before the command line.
func stageOf(name string) func() int {
	switch name {
	case runtime.InitName:
		return func() int { return runtime.Init(mountImage, imageConfig) }
	case serverName:
		return serve
	case guardName:
		return guard
	case ownName:
		return own
	case tasksName:
		return tasksStage
	case cleanupName:
		return cleanupStage
	case probeName:
		return probeStage
	case probeInsideName:
		return probeInside
	case nodeserver.Name:
		return nodeserver.Main
	case runtime.RootName:
		return runtime.RootStage
	case saveName:
		return saveStage
	case importStageName:
		return importStage
	case noded.HeirName:
		return noded.HeirMain
	case noded.MetricsName:
		return metricsStage
	case bench.ChildName:
		return func() int { return bench.Child(os.Args[1:], os.Stdout, os.Stderr) }
	}
	switch {
	case runtime.IsEntrypointCommand(os.Args):
		return runtime.TellEnviron
	case strings.HasPrefix(name, mounter.Name): // and its helpers
		return mounter.Main
	case filepath.Base(name) == helperName:
		return func() int { return mountHelper(os.Args[1:]) }
	}
	return nil
}

// execute runs one command line and returns the exit status.
func execute(args []string) int {
	cmd := rootCommand(args...)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(context.Background())
	var status exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	fmt.Fprintln(os.Stderr, "squire:", runtime.OneLine(err))
	return runtime.ExitFailed
}

// exitError is the exit status of a command that ran: not a failure of ours.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// rootCommand is the command line, with what args need of it.
func rootCommand(args ...string) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "squire",
		Version: versionString(),
		Args:    needCommand,
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
		Short:   "Run commands inside squashfs images",
		Long: `Squire runs commands inside squashfs images as an ordinary user, mounts images,
makes them, looks into them and unpacks them. Images are served lazily: only what is read is loaded.

Exit status: that of the command that was run; 1 when ls, cat, extract or inspect
found damage, or a path is not in the image, when pack left out what it could not read
or that changed meanwhile, or when a measurement of bench failed;
128+N when signal N ended it; 125 when squire itself failed, 126 when the command
cannot be executed, 127 when it is not in the image.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
	}
	cmd.AddCommand(commands(args)...)
	if len(cmd.Commands()) > 1 {
		refuseUnknown(cmd)
	}
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %q", err, c.CommandPath()+" --help")
	})
	return cmd
}

// commands returns the one that args name, if it is one that is started for every task, and else all. To make them all
// takes 0.4 ms.
func commands(args []string) []*cobra.Command {
	if len(args) > 0 {
		switch args[0] {
		case "run":
			return []*cobra.Command{runCommand()}
		case "mount":
			return []*cobra.Command{mountCommand()}
		case "slurm":
			return []*cobra.Command{slurmCommand()}
		}
	}
	return []*cobra.Command{
		runCommand(), execCommand(), mountCommand(), umountCommand(), daemonCommand(),
		importCommand(), packCommand(), inspectCommand(), signCommand(), verifyCommand(), lsCommand(), catCommand(), extractCommand(),
		containerCommand(), psCommand(), statsCommand(), topCommand(), traceCommand(), benchCommand(), doctorCommand(), versionCommand(), manCommand(),
		slurmCommand(), environmentTopic(), filesTopic(),
	}
}

// refuseUnknown has "squire help" refuse what it does not know: cobra's would print the help of something else, and end with 0.
func refuseUnknown(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, err := root.Find([]string{"help"})
	if err != nil {
		return
	}
	help.Args = func(_ *cobra.Command, args []string) error {
		topic, rest, err := root.Find(args)
		if err == nil && len(rest) > 0 {
			err = unknownCommand(topic, rest[0])
		}
		return err
	}
}

// needCommand is for a command that does nothing but hold others together.
func needCommand(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return unknownCommand(c, args[0])
	}
	return nil
}

// unknownCommand says what else could have been meant.
func unknownCommand(c *cobra.Command, name string) error {
	hint := fmt.Sprintf("see %q", c.CommandPath()+" --help")
	c.SuggestionsMinimumDistance = 2
	if like := c.SuggestionsFor(name); len(like) > 0 {
		hint = fmt.Sprintf("did you mean %q?", like[0])
	} else if _, err := os.Stat(name); err == nil && !c.HasParent() {
		hint = fmt.Sprintf("did you mean %q?", "squire run "+name)
	}
	return fmt.Errorf("unknown command %q; %s", name, hint)
}

// needArgs is cobra's RangeArgs with a message that shows the form.
func needArgs(minimum, maximum int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) >= minimum && (maximum < 0 || len(args) <= maximum) {
			return nil
		}
		if maximum >= 0 && len(args) > maximum {
			return fmt.Errorf("%s: one argument too many; usage: %s", printable(args[maximum]), c.UseLine())
		}
		return fmt.Errorf("usage: %s", c.UseLine())
	}
}
