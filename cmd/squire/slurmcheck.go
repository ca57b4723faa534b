package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// exitBadOption is srun's exit status for an option of a plugin that is wrong.
const exitBadOption = 255

func slurmCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check the options of a step",
		Long: `Read a document of the Slurm plugin from standard input and check the options in it.
What is wrong with them is said on standard error, a line each. On standard output comes what Slurm will not pass on as it
is meant, for the plugin to put into a variable.

Exit status: 0 if they are right; 255 if they are not.`,
		Args: needArgs(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			var d slurmDocument
			err := readSlurmDocument(c.InOrStdin(), &d)
			if err == nil {
				_, err = d.resolve()
			}
			if err != nil {
				fmt.Fprintln(c.ErrOrStderr(), wordsOf(err))
				return exitError(exitBadOption)
			}
			fmt.Fprint(c.OutOrStdout(), d.meantText())
			return nil
		},
	}
}
