package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/squirefs/squire/runtime"
)

// finding is what squire doctor has found out about one thing, in the form of --json.
type finding struct {
	Check string       `json:"check"` // a word that stays the same
	State findingState `json:"state"`
	Text  string       `json:"text"`
	Mend  string       `json:"mend,omitempty"` // what an administrator can do
}

// findingState says how good it is.
type findingState string

const (
	findingOK      findingState = "ok"
	findingNote    findingState = "note"    // is not there, and need not be
	findingWarning findingState = "warning" // something will not work, or badly
	findingFailed  findingState = "failed"  // containers of ordinary users will not work
)

// doctor looks at a host. Tests have one of their own below root, and answer for the rest of it.
type doctor struct {
	root     string
	release  func() string      // of the kernel, as uname(2) has it
	probe    func() probeResult // what an ordinary user can do
	services func() ([]seen, error)

	findings []finding
}

func doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor [flags]",
		Short: "Check what this host has for containers, and how to mend what is missing",
		Long: `Check the kernel, /dev/fuse, user namespaces, overlayfs, the service of the node,
GPUs, the files of the site and Slurm's plugin, and say how to mend what is missing.

It tries what "squire run" does, without an image, as an ordinary user, also when root
asks. Nothing is changed.

  ok       it is as it should be
  note     it is not there, and need not be
  warning  something will not work, or badly
  failed   containers of ordinary users will not work

Exit status: 0, also with notes and warnings; 1 if something failed; 125 when squire
itself did.`,
		Example: `  squire doctor
  pdsh -a squire doctor | dshbak -c
  squire doctor --json | jq '.[] | select(.state != "ok")'`,
		Args:              needArgs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			d := newDoctor()
			d.examine()
			return d.tell(c.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// newDoctor is for this host.
func newDoctor() *doctor {
	return &doctor{root: "/", release: kernelRelease, probe: probe, services: nodeReports}
}

// examine looks at everything.
func (d *doctor) examine() {
	d.kernel()
	result := d.probe()
	services, err := d.services()
	d.fuse(&result, len(services) > 0)
	d.userNamespaces(&result)
	d.overlay(&result)
	d.fusermount(len(services) > 0)
	d.service(services, err)
	d.site()
	d.places()
	d.gpus()
	d.slurm()
}

func (d *doctor) found(check string, state findingState, mend, format string, args ...any) {
	d.findings = append(d.findings, finding{check, state, fmt.Sprintf(format, args...), mend})
}

func (d *doctor) ok(check, format string, args ...any) {
	d.found(check, findingOK, "", format, args...)
}

// path is a path of the host that is looked at.
func (d *doctor) path(p string) string { return filepath.Join(d.root, p) }

// tell prints the findings. The error is about them.
func (d *doctor) tell(w io.Writer, asJSON bool) error {
	status := error(nil)
	for _, f := range d.findings {
		if f.State == findingFailed {
			status = exitError(1)
		}
	}
	if asJSON {
		if err := printJSON(w, d.findings); err != nil {
			return err
		}
		return status
	}
	for _, f := range d.findings {
		if _, err := fmt.Fprintf(w, "%-8s %s: %s\n", f.State, f.Check, printable(f.Text)); err != nil {
			return err
		}
		if f.Mend == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "%8s   %s\n", "", printable(f.Mend)); err != nil {
			return err
		}
	}
	return status
}

// site reads the files of the site as squire run does.
func (d *doctor) site() {
	name := filepath.Join(siteDir, policyName)
	site, err := siteConfig()
	switch _, missing := os.Stat(name); {
	case err != nil:
		d.found("site", findingFailed, "mend the file: no container starts until then", "%s", runtime.OneLine(err))
		return
	case missing != nil:
		d.found("site", findingNote, "", "there is no %s: nothing is limited", name)
	default:
		d.ok("site", "%s: %s", name, site.summary())
	}
	parser := &runtime.MountParser{Dir: "/", Getenv: os.LookupEnv}
	mounts, err := siteMounts(parser)
	switch {
	case err != nil:
		d.found("mounts.d", findingFailed, "mend the file, or let the line have nofail: no container starts until then", "%s", runtime.OneLine(err))
	case len(mounts) > 0:
		d.ok("mounts.d", "%s for every container", plural(int64(len(mounts)), "mount"))
	}
}
