package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write the man pages into a directory",
		Args:  needArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			date, err := manDate()
			if err != nil {
				return err
			}
			if err = os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return writeManPages(c.Root(), args[0], date)
		},
	}
}

// manDate is the date of the pages: now, unless they are to be reproducible
// (https://reproducible-builds.org/specs/source-date-epoch).
func manDate() (time.Time, error) {
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		return time.Now(), nil
	}
	n, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(n, 0), nil
}

// writeManPages writes the page of a command and of all below it. Not cobra's
// doc package does it: that one goes through Markdown, with packages whose
// initialization every start of this program would wait for.
func writeManPages(c *cobra.Command, dir string, date time.Time) error {
	for _, sub := range slices.Concat(manSubcommands(c), manTopics(c)) {
		if err := writeManPages(sub, dir, date); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, manName(c)+".1"), manPage(c, date), 0o644)
}

func manName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

func manSubcommands(c *cobra.Command) (subs []*cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && !sub.IsAdditionalHelpTopicCommand() {
			subs = append(subs, sub)
		}
	}
	return subs
}

// manTopics are pages that are about no command.
func manTopics(c *cobra.Command) (topics []*cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.IsAdditionalHelpTopicCommand() {
			topics = append(topics, sub)
		}
	}
	return topics
}

// manPage writes one page in the macros of man(7).
func manPage(c *cobra.Command, date time.Time) []byte {
	c.InitDefaultHelpFlag()
	c.InitDefaultVersionFlag()
	var b bytes.Buffer
	fmt.Fprintf(&b, ".nh\n.TH %q \"1\" %q %q \"Squire\"\n",
		strings.ToUpper(manName(c)), date.Format("Jan 2006"), "squire "+versionString())
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", manText(manName(c)), manText(c.Short))
	if !c.IsAdditionalHelpTopicCommand() {
		fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n", manText(manSynopsis(c)))
	}
	text := c.Long
	if text == "" {
		text = c.Short
	}
	b.WriteString(".SH DESCRIPTION\n")
	manParagraphs(&b, text)
	if subs := manSubcommands(c); len(subs) > 0 {
		b.WriteString(".SH COMMANDS\n")
		for _, sub := range subs {
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", manText(sub.Name()), manText(sub.Short))
		}
	}
	if flags := c.NonInheritedFlags(); !c.IsAdditionalHelpTopicCommand() && flags.HasAvailableFlags() {
		b.WriteString(".SH OPTIONS\n")
		flags.VisitAll(func(f *pflag.Flag) { manFlag(&b, f) })
	}
	if c.Example != "" {
		fmt.Fprintf(&b, ".SH EXAMPLE\n.EX\n%s\n.EE\n", manText(c.Example))
	}
	var others []string
	if c.HasParent() {
		others = append(others, manName(c.Parent()))
	}
	for _, sub := range slices.Concat(manSubcommands(c), manTopics(c)) {
		others = append(others, manName(sub))
	}
	if len(others) > 0 {
		fmt.Fprintf(&b, ".SH SEE ALSO\n.BR %s (1)\n", strings.Join(others, " (1),\n.BR "))
	}
	return b.Bytes()
}

// manSynopsis is the form of a command line.
func manSynopsis(c *cobra.Command) string {
	if len(manSubcommands(c)) > 0 {
		return c.CommandPath() + " COMMAND [ARG...]"
	}
	return c.UseLine()
}

// manParagraphs writes paragraphs; lines that are indented, as those of lists, stay as they are.
func manParagraphs(b *bytes.Buffer, text string) {
	asIs := false
	for line := range strings.SplitSeq(text, "\n") {
		switch indented := strings.HasPrefix(line, " "); {
		case indented && !asIs:
			b.WriteString(".nf\n")
			asIs = true
		case !indented && asIs:
			b.WriteString(".fi\n")
			asIs = false
		}
		if line == "" {
			line = ".PP"
		} else {
			line = manText(line)
		}
		fmt.Fprintln(b, line)
	}
	if asIs {
		b.WriteString(".fi\n")
	}
}

func manFlag(b *bytes.Buffer, f *pflag.Flag) {
	if f.Hidden {
		return
	}
	b.WriteString(".TP\n")
	if f.Shorthand != "" {
		fmt.Fprintf(b, `\fB\-%s\fP, `, f.Shorthand)
	}
	value, usage := pflag.UnquoteUsage(f)
	fmt.Fprintf(b, `\fB\-\-%s\fP`, manText(f.Name))
	switch {
	case f.NoOptDefVal != "" && value != "":
		fmt.Fprintf(b, `[=\fI%s\fP]`, value)
	case value != "":
		fmt.Fprintf(b, ` \fI%s\fP`, value)
	}
	fmt.Fprintf(b, "\n%s\n", manText(usage+flagDefault(f)))
}

// flagDefault says what a flag is when it is not given, as --help does.
func flagDefault(f *pflag.Flag) string {
	switch f.DefValue {
	case "", "0", "0s", "false", "[]", "<nil>":
		return ""
	}
	if f.Value.Type() == "string" {
		return fmt.Sprintf(" (default %q)", f.DefValue)
	}
	return fmt.Sprintf(" (default %s)", f.DefValue)
}

// manText escapes what roff would take for its own: backslashes, hyphens, which
// it would print as other characters, and a dot or quote that starts a line.
func manText(s string) string {
	lines := strings.Split(strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(s), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
