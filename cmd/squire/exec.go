package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/runtime/container"
)

func execCommand() *cobra.Command {
	var e runtime.ExecSpec
	cmd := &cobra.Command{
		Use:   "exec [flags] PID|NAME [--] [COMMAND [ARG...]]",
		Short: "Run a command in a container that runs",
		Long: `Run COMMAND (default /bin/sh) in a running container of yours: that of process PID,
which is any process in it, or the "squire run" that started it.

The command has the namespaces, the rights, the limits and the control groups of the
container's first command, standard input, output and error of this one, and its
environment, merged as "squire run" does. On a terminal it gets one of its own inside.
It ends with the container, and with this command.

NAME is a container of "squire run --name" or Slurm's --container-name that runs, or
JOB.STEP, the container of a step of Slurm on this node. There COMMAND is a
process of this one's, with its control groups and terminal, and it does not end with others.

Root may enter the containers of all users, and is that user inside. From inside of a
container none can be entered.

Exit status: the command's; 128+N when signal N ended it; 125 when squire itself
failed, 126 when the command cannot be executed, 127 when it is not in the
container.`,
		Example: `  squire exec $(pgrep -f train.py) -- nvidia-smi
  squire exec --workdir /data 4711 -- bash`,
		Args: needArgs(1, -1),
		ValidArgsFunction: func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return completeContainers(c, args, word)
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if e.Command = args[1:]; len(e.Command) > 0 && e.Command[0] == "--" {
				e.Command = e.Command[1:]
			} else if len(e.Command) > 0 && strings.HasPrefix(e.Command[0], "-") {
				return fmt.Errorf("%s: flags of squire go before the process id", printable(e.Command[0]))
			}
			if err := checkEnvNames(e.KeepEnv); err != nil {
				return err
			}
			pid, err := strconv.ParseInt(args[0], 10, 32)
			switch {
			case err != nil && container.CheckName(args[0]) == nil:
				return execNamed(args[0], &e)
			case err != nil || pid <= 0:
				return fmt.Errorf("%s: not a process id", printable(args[0]))
			}
			e.PID, e.Environ = int(pid), os.Environ()
			status, err := runtime.Exec(&e)
			if err == nil && status != 0 {
				return exitError(status)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringVar(&e.Workdir, "workdir", "", "working directory inside (default: the container's)")
	f.StringSliceVar(&e.KeepEnv, "env", nil, "variables whose value here wins over the image's: NAME[,...]")
	f.StringArrayVar(&e.SetEnv, "set-env", nil, "set a variable inside: NAME=VALUE")
	return cmd
}

// execNamed runs a command in a container with a name, which runs.
func execNamed(name string, e *runtime.ExecSpec) error {
	if len(e.Command) == 0 {
		e.Command = []string{"/bin/sh"}
	}
	o := &runOptions{workdir: e.Workdir, keepEnv: e.KeepEnv, setEnv: e.SetEnv}
	n := &namedRun{o: o, name: name, mode: container.Join}
	err := n.open(context.Background(), e.Command)
	if errors.Is(err, container.ErrNone) {
		err = fmt.Errorf("%s: not a process id, and not the name of a container", printable(name))
	}
	if err != nil {
		return err
	}
	defer n.close()
	status, err := n.command(e.Command)
	if err == nil && status != 0 {
		return exitError(status)
	}
	return err
}
