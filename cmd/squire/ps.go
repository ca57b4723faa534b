package main

import (
	"fmt"
	"io"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/squirefs/squire/runtime"
)

type psOptions struct {
	json  bool
	quiet bool
}

func psCommand() *cobra.Command {
	var o psOptions
	cmd := &cobra.Command{
		Use:   "ps [flags]",
		Short: "List the images that are served",
		Long: `List the images that the service of the node and your own services serve: root sees
all of the node's, others those that they use.

ID names an image for "squire stats"; STATE is what it does: starting, served,
waiting (for a server that takes over), failed, or leaving (nobody refers to it any
more, but somebody still has it mounted); USERS are those who use it; REFS counts the
programs that do, DIRS the directories that the service itself has mounted it on; READ is
what was read of the image file; AGE how long it has been served.

VIEW is how the image looks: squash shows every file as the caller's own, as "squire
run" does, private lets one user in, all everybody.

A service whose image server does not answer says what that told last, and a line on
standard error says so.

Exit status: 0 also if there is no service, 125 if there is one that does not answer.`,
		Args:              needArgs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(c *cobra.Command, _ []string) error { return o.run(c) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print ids only")
	cmd.MarkFlagsMutuallyExclusive("json", "quiet")
	return cmd
}

func (o *psOptions) run(c *cobra.Command) error {
	all, err := ask(c.ErrOrStderr(), o.quiet)
	if err != nil {
		return err
	}
	w := c.OutOrStdout()
	switch {
	case o.json:
		return printJSON(w, listed(all))
	case o.quiet:
		for _, x := range everyImage(all) {
			if _, err = fmt.Fprintln(w, x.service.id(x.image)); err != nil {
				return err
			}
		}
		return nil
	case len(all) == 0:
		return nil
	}
	return printImages(w, all, time.Now())
}

// ask asks all services once. What does not answer while another one does is told on w, and so is, unless quiet is set,
// that there is none.
func ask(w io.Writer, quiet bool) ([]seen, error) {
	var s services
	defer s.close()
	all, err := s.reports()
	for i := range all {
		if all[i].Stale {
			fmt.Fprintf(w, "squire: the server of the %s service, process %d, does not answer; figures are the last known\n",
				all[i].Service, all[i].PID)
		}
	}
	switch {
	case err != nil && len(all) == 0:
		return nil, err
	case err != nil:
		fmt.Fprintln(w, "squire:", runtime.OneLine(err))
	case len(all) == 0 && !quiet:
		fmt.Fprintln(w, "squire:", noService)
	}
	return all, nil
}

// everyImage lists the images of all services.
func everyImage(all []seen) (images []served) {
	for i := range all {
		for k := range all[i].Images {
			images = append(images, served{&all[i], &all[i].Images[k]})
		}
	}
	return images
}

// listedImage is an image in the form of --json.
type listedImage struct {
	Service    string    `json:"service"`
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	View       string    `json:"view"`
	State      string    `json:"state"`
	Users      []uint32  `json:"users"`
	References int       `json:"references"`
	Attached   int       `json:"directories"`
	Device     string    `json:"device"`
	Size       int64     `json:"size"`
	Read       uint64    `json:"read"`
	Since      time.Time `json:"since"`
}

func listed(all []seen) []listedImage {
	list := []listedImage{}
	for _, x := range everyImage(all) {
		i := x.image
		list = append(list, listedImage{
			Service: x.service.Service, ID: x.service.id(i), Name: i.Name, View: i.View, State: i.State,
			Users: i.Users, References: i.References, Attached: i.Attached, Device: i.Device,
			Size: i.Size, Read: i.Read, Since: i.Since,
		})
	}
	return list
}

// newTable returns a table of columns without lines; those named in right are numbers.
func newTable(w io.Writer, columns []string, right ...string) table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	row := make(table.Row, len(columns))
	for i, c := range columns {
		row[i] = c
	}
	t.AppendHeader(row)
	var configs []table.ColumnConfig
	for _, c := range right {
		configs = append(configs, table.ColumnConfig{Name: c, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(configs)
	t.SuppressTrailingSpaces()
	return t
}

// printImages prints the table of ps.
func printImages(w io.Writer, all []seen, now time.Time) error {
	out := &errWriter{w: w}
	t := newTable(out, []string{"ID", "SERVICE", "STATE", "VIEW", "USERS", "REFS", "DIRS", "SIZE", "READ", "AGE", "IMAGE"},
		"REFS", "DIRS", "SIZE", "READ", "AGE")
	for _, x := range everyImage(all) {
		i := x.image
		t.AppendRow(table.Row{
			x.service.id(i), x.service.Service, shownWord(i.State), shownWord(i.View), userNames(i.Users),
			i.References, i.Attached, sizeString(i.Size), sizeOf(i.Read), age(now.Sub(i.Since)), shownPath(i.Name),
		})
	}
	t.Render()
	return out.err
}

// errWriter keeps the first error: a table does not tell of it.
type errWriter struct {
	w   io.Writer
	err error
}

func (e *errWriter) Write(b []byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	var n int
	n, e.err = e.w.Write(b)
	return n, e.err
}

// shownWord is a word of a service's, which is a column and no more.
func shownWord(s string) string {
	const most = 40
	if s = printable(s); len(s) > most {
		return "…"
	}
	return s
}

// userNames names a few users.
func userNames(ids []uint32) string {
	const most = 3
	var names []string
	for i, id := range ids {
		if i == most {
			names = append(names, fmt.Sprintf("+%d", len(ids)-most))
			break
		}
		names = append(names, userName(id))
	}
	return strings.Join(names, ",")
}

// userName is the name of a user in /etc/passwd, or their number.
func userName(id uint32) string {
	number := strconv.FormatUint(uint64(id), 10)
	u, err := user.LookupId(number)
	if err != nil || u.Username == "" {
		return number
	}
	return shownWord(u.Username)
}

// sizeOf is sizeString for what is counted.
func sizeOf(n uint64) string { return sizeString(int64(min(n, 1<<63-1))) }

// age writes a time that has passed, in its two largest units.
func age(d time.Duration) string {
	s := max(int64(d/time.Second), 0)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	}
	return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
}

// completeServed completes the ids of images that are served, and the names of files.
func completeServed(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := ask(io.Discard, true)
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var ids []string
	for _, x := range everyImage(all) {
		ids = append(ids, cobra.CompletionWithDesc(x.service.id(x.image), shownPath(x.image.Name)))
	}
	return ids, cobra.ShellCompDirectiveDefault
}
