package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/squirefs/squire/runtime"
)

func execCommand() *cobra.Command {
	var e runtime.ExecSpec
	cmd := &cobra.Command{
		Use:   "exec [flags] PID [--] [COMMAND [ARG...]]",
		Short: "Run a command in a container that runs",
		Long: `Run COMMAND (default /bin/sh) in a running container of yours: that of process PID,
which is any process in it, or the "squire run" that started it.

The command has the namespaces, the rights, the limits and the control groups of the
container's first command, standard input, output and error of this one, and its
environment, merged as "squire run" does. On a terminal it gets one of its own inside.
It ends with the container, and with this command.

Root may enter the containers of all users, and is that user inside. From inside of a
container none can be entered.

Exit status: the command's; 128+N when signal N ended it; 125 when squire itself
failed, 126 when the command cannot be executed, 127 when it is not in the
container.`,
		Example: `  squire exec $(pgrep -f train.py) -- nvidia-smi
  squire exec --workdir /data 4711 -- bash`,
		Args:              needArgs(1, -1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(_ *cobra.Command, args []string) error {
			pid, err := strconv.ParseInt(args[0], 10, 32)
			if err != nil || pid <= 0 {
				return fmt.Errorf("%s: not a process id", printable(args[0]))
			}
			e.PID = int(pid)
			if e.Command = args[1:]; len(e.Command) > 0 && e.Command[0] == "--" {
				e.Command = e.Command[1:]
			} else if len(e.Command) > 0 && strings.HasPrefix(e.Command[0], "-") {
				return fmt.Errorf("%s: flags of squire go before the process id", printable(e.Command[0]))
			}
			e.Environ = os.Environ()
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
