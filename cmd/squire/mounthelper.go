package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	goruntime "runtime"
	"slices"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
)

// helperName is what mount(8) calls for "mount -t squire" and for lines of fstab(5)
// with that type: mount.squire IMAGE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS]
// [-t TYPE.SUBTYPE] (mount(8), "External helpers").
const helperName = "mount.squire"

// Exit statuses of mount(8), which passes on those of its helpers.
const (
	mountUsage  = 1  // it was called the wrong way
	mountSystem = 2  // something of the system's did not work
	mountFailed = 32 // the mount failed
)

// mountHelper is mount.squire. It returns the exit status.
func mountHelper(args []string) int {
	o := mountOptions{helper: true}
	var fake, verbose, noTable bool
	var namespace, fsType string
	status := mountUsage
	cmd := &cobra.Command{
		Use:           helperName + " IMAGE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]",
		Short:         "Mount an image, as a helper of mount(8)",
		Args:          needArgs(2, 2),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(_ *cobra.Command, args []string) error {
			if fsType != "" && fsType != fsTypeSquire {
				return fmt.Errorf("-t %s: want %s", printable(fsType), fsTypeSquire)
			}
			if _, _, err := o.parse(args[0]); err != nil {
				return err
			}
			if fake {
				return nil
			}
			if namespace != "" {
				status = mountSystem
				return enterMounts(namespace, args, &o, verbose)
			}
			if o.mayBeMissing(args[0]) {
				return nil
			}
			status = mountFailed
			err := o.run(args[0], args[1])
			if err == nil && verbose {
				fmt.Printf("%s: %s mounted on %s\n", helperName, printable(args[0]), printable(args[1]))
			}
			return err
		},
	}
	cmd.CompletionOptions.DisableDefaultCmd = true
	f := cmd.Flags()
	f.StringSliceVarP(&o.options, "options", "o", nil, "mount options, see squire mount --help")
	f.BoolVarP(&o.sloppy, "sloppy", "s", false, "ignore unknown options")
	f.BoolVarP(&fake, "fake", "f", false, "check, but do not mount")
	f.BoolVarP(&noTable, "no-mtab", "n", false, "do not write to /etc/mtab, as is so anyway")
	f.BoolVarP(&verbose, "verbose", "v", false, "say what was mounted")
	f.StringVarP(&namespace, "namespace", "N", "", "mount in another mount namespace, a file as in /proc/PID/ns")
	f.StringVarP(&fsType, "types", "t", "", "type of the file system")
	cmd.SetArgs(args)
	if err := cmd.Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s\n", helperName, runtime.OneLine(err))
		return status
	}
	return 0
}

// mayBeMissing reports whether there is no image, which nofail is about (mount(8): "do not report errors for this device if it
// does not exist"). mount(8) leaves that to its helpers.
func (o *mountOptions) mayBeMissing(image string) bool {
	if !slices.Contains(o.options, "nofail") {
		return false
	}
	_, err := os.Stat(image)
	return errors.Is(err, fs.ErrNotExist)
}

// fsTypeSquire is the type of an image in mount(8) and fstab(5).
const fsTypeSquire = "squire"

// enterMounts executes this program again in another mount namespace, where image
// and directory are then looked for. A thread cannot enter one while it shares its
// working directory with others (setns(2)).
func enterMounts(namespace string, args []string, o *mountOptions, verbose bool) error {
	ns, err := os.Open(namespace)
	if err != nil {
		return unwrapPath(namespace, err)
	}
	defer ns.Close()
	goruntime.LockOSThread()
	if err = unix.Unshare(unix.CLONE_FS); err == nil {
		err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
	}
	if err != nil {
		return fmt.Errorf("enter mount namespace %s: %w", printable(namespace), err)
	}
	argv := []string{helperName, args[0], args[1]}
	for _, opt := range o.options {
		argv = append(argv, "-o", opt)
	}
	if o.sloppy {
		argv = append(argv, "-s")
	}
	if verbose {
		argv = append(argv, "-v")
	}
	return fmt.Errorf("execute this program again: %w", syscall.Exec("/proc/self/exe", argv, os.Environ()))
}
