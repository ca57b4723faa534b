package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/sqfs/signed"
)

func signCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "sign --key FILE IMAGE",
		Short: "Sign an image",
		Long: `Write a signature of IMAGE beside it, IMAGE.sig, for sites that run signed images only
(images.keys in squire.toml) and for "squire verify".

What is signed are the hashes of all blocks of 128 KiB of the file, which are a part of the
signature. So whoever runs a signed image need not read it first: each block is checked when it
is read, and programs get an I/O error in the place of one that was altered. IMAGE and IMAGE.sig
are copied together.

FILE is an Ed25519 key of OpenSSH (ssh-keygen -t ed25519), one of a security key (-t ed25519-sk
or ecdsa-sk), or the public half of one that ssh-agent has: "ssh-keygen -Y sign" makes the
signature, and asks for a passphrase, or for a touch, if the key wants one.`,
		Example: `  ssh-keygen -t ed25519 -C images@site -f image-key
  squire sign --key image-key pytorch.sqsh
  squire verify --key image-key.pub pytorch.sqsh`,
		Args:              needArgs(1, 1),
		ValidArgsFunction: completeImageOnly,
		RunE: func(c *cobra.Command, args []string) error {
			if key == "" {
				return errors.New("--key: want the file of a key")
			}
			return sign(c, key, args[0])
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "`FILE` of the key to sign with")
	return cmd
}

// findKey is an error if there is no key, which ssh-keygen would only find out when all of the image was read. Of one that
// ssh-agent has, it takes FILE.pub as well.
func findKey(file string) error {
	_, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		if _, public := os.Stat(file + ".pub"); public == nil {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("--key %w", unwrapPath(file, err))
	}
	return nil
}

// sign writes the signature of an image.
func sign(c *cobra.Command, key, image string) error {
	if err := findKey(key); err != nil {
		return err
	}
	f, err := openImage(image)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := fileSize(f)
	if err != nil {
		return fmt.Errorf("%s: %w", image, err)
	}
	out, err := newOutput(image+signed.Suffix, true)
	if err != nil {
		return err
	}
	defer out.discard()
	statement, list, err := signed.Hash(f, size)
	if err != nil {
		return fmt.Errorf("%s: %w", image, err)
	}
	head, err := signedHead(key, statement)
	if err != nil {
		return fmt.Errorf("sign %s: %w", image, err)
	}
	if _, err = out.File().Write(append([]byte(head), list...)); err == nil {
		err = out.commit()
	}
	if err != nil {
		return unwrapPath(image+signed.Suffix, err)
	}
	fmt.Fprintf(c.OutOrStdout(), "%s\n", printable(image+signed.Suffix))
	return nil
}

// signedHead has OpenSSH sign a statement.
func signedHead(key string, s *signed.Statement) (string, error) {
	// ssh-keygen ends at once where nobody is known by the caller's number, as in many containers and on nodes whose
	// accounts come from elsewhere. Root of a user namespace is known everywhere, and has the caller's files and agent.
	armor, err := runKeygen(key, s.String(), unnamed())
	if errors.Is(err, errNoNamespace) {
		armor, err = runKeygen(key, s.String(), false)
	}
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", errors.New("ssh-keygen is not installed (openssh-client, openssh-clients)")
	case err != nil && unnamed():
		return "", fmt.Errorf("ssh-keygen: %w; it may want a line for your number, %d, in /etc/passwd", err, os.Getuid())
	case err != nil:
		return "", fmt.Errorf("ssh-keygen: %w", err)
	}
	sig, err := signed.Parse([]byte(s.String() + string(armor)))
	if err != nil {
		return "", err // of a key of another type, say
	}
	return sig.Head, nil
}

// unnamed reports whether /etc/passwd has nobody with the caller's number.
func unnamed() bool {
	_, err := user.LookupId(strconv.Itoa(os.Getuid()))
	return err != nil && os.Getuid() != 0
}

// errNoNamespace is that the caller may make no user namespace.
var errNoNamespace = errors.New("no user namespace")

// runKeygen signs a text, as root of a user namespace if asked to.
func runKeygen(key, text string, asRoot bool) ([]byte, error) {
	var armor bytes.Buffer
	cmd := exec.Command("ssh-keygen", "-q", "-Y", "sign", "-n", signed.Namespace, "-f", key)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), &armor, os.Stderr
	if asRoot {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
	}
	err := cmd.Start()
	if err != nil && asRoot && !errors.Is(err, exec.ErrNotFound) {
		return nil, errNoNamespace
	}
	if err == nil {
		err = cmd.Wait()
	}
	return armor.Bytes(), err
}

func verifyCommand() *cobra.Command {
	var keys []string
	cmd := &cobra.Command{
		Use:   "verify [--key FILE] IMAGE",
		Short: "Check the signature of an image, and all of the image by it",
		Long: `Read all of IMAGE, and say who signed it, if IMAGE.sig beside it is the signature of one of
the keys, and the image is what was signed. FILE has public keys of OpenSSH, one in a line; without
--key those of the site count (images.keys in squire.toml).

Whether an image without a signature is damaged says "squire inspect --verify".

Exit status: 0 if it is what was signed; 1 if it is not signed, or with another key, or was
altered; 125 if something else failed.`,
		Example: `  squire verify pytorch.sqsh
  squire verify --key image-key.pub pytorch.sqsh`,
		Args:              needArgs(1, 1),
		ValidArgsFunction: completeImageOnly,
		RunE: func(c *cobra.Command, args []string) error {
			public, err := verifyKeys(keys)
			if err != nil {
				return err
			}
			return verifySigned(c, public, args[0])
		},
	}
	cmd.Flags().StringArrayVar(&keys, "key", nil, "`FILE` with public keys, in place of the site's")
	return cmd
}

// verifyKeys reads keys from files; without any they are the site's.
func verifyKeys(files []string) (keys []signed.Key, err error) {
	if len(files) == 0 {
		site, err := siteConfig()
		if err == nil && len(site.Images.keys) == 0 {
			err = errors.New("which keys count? --key FILE names some, or images.keys in squire.toml")
		}
		if err != nil {
			return nil, err
		}
		return site.Images.keys, nil
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("--key: %w", unwrapPath(name, err))
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
				continue
			}
			key, err := signed.ParseKey(line)
			if err != nil {
				return nil, fmt.Errorf("--key %s: %w", name, err)
			}
			keys = append(keys, *key)
		}
	}
	return keys, nil
}

// verifySigned checks an image, and says what came of it.
func verifySigned(c *cobra.Command, keys []signed.Key, image string) error {
	f, err := openImage(image)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := fileSize(f)
	if err != nil {
		return fmt.Errorf("%s: %w", image, err)
	}
	sig, list, err := readSignature(image, f)
	if err == nil {
		var by *signed.Key
		if by, err = sig.Verify(keys); err == nil {
			if err = checkSigned(f, size, sig, list); err == nil {
				fmt.Fprintf(c.OutOrStdout(), "%s: signed by %s\n", printable(image), printable(by.String()))
				return nil
			}
		}
	}
	if errors.Is(err, errUnreadable) {
		return err
	}
	fmt.Fprintf(c.ErrOrStderr(), "squire: %s: %s\n", printable(image), printable(err.Error()))
	return exitError(1)
}

// errUnreadable is that an image could not be compared with what was signed.
var errUnreadable = errors.New("cannot be read")

func checkSigned(f *os.File, size int64, sig *signed.Signature, list []byte) error {
	r, err := signed.NewReader(f, size, &sig.Statement, list)
	if err != nil {
		return err
	}
	if err = r.Check(); err != nil && !errors.Is(err, signed.ErrAltered) {
		err = fmt.Errorf("%s: %w: %w", f.Name(), errUnreadable, err)
	}
	return err
}

// errUnsigned is that there is no signature beside an image.
var errUnsigned = errors.New("is not signed")

// readSignature reads the signature beside an image: by the image's name, or if that is a link, and has none, by the name
// of the file. Nothing is verified yet. It matters to nobody whose file it is, nor that it may be another than that of
// this image: then the image is not what was signed.
func readSignature(image string, f *os.File) (*signed.Signature, []byte, error) {
	sig, err := openSignature(image + signed.Suffix)
	if errors.Is(err, os.ErrNotExist) {
		if real, linked := os.Readlink(procPath(int(f.Fd()))); linked == nil {
			sig, err = openSignature(real + signed.Suffix)
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, errUnsigned
	}
	if err != nil {
		return nil, nil, unwrapPath(image+signed.Suffix, err)
	}
	defer sig.Close()
	b, err := io.ReadAll(io.LimitReader(sig, signed.MaxBytes+1))
	if err != nil {
		return nil, nil, unwrapPath(image+signed.Suffix, err)
	}
	s, err := signed.Parse(b)
	if err == nil && len(b) > signed.MaxBytes {
		err = errors.New("is too long for a signature")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", image+signed.Suffix, err)
	}
	return s, bytes.TrimPrefix(b, []byte(s.Head)), nil
}

// openSignature opens a plain file, without waiting for any other.
func openSignature(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, errors.New("not a file")
	}
	return f, nil
}

// openedImage is an image that is to be run or mounted.
type openedImage struct {
	*os.File
	// It is to be what was signed, if head is not "": that of a signature which was verified, what it states, and its list
	// of hashes, a file in memory that nobody can change.
	head, statement string
	list            *os.File
}

// Close lets go of the image.
func (i *openedImage) Close() {
	i.File.Close()
	if i.list != nil {
		i.list.Close()
	}
}

// files are those that a server is given of it.
func (i *openedImage) files() []*os.File {
	if i.list == nil {
		return []*os.File{i.File}
	}
	return []*os.File{i.File, i.list}
}

// mount has a service mount it.
func (i *openedImage) mount(c *noded.Client, r noded.Request, traces []*os.File) (*noded.Mounted, error) {
	if i.list == nil {
		return c.Mount(r, i.File, traces...)
	}
	r.Signature = i.head
	return c.MountSigned(r, i.File, i.list, traces...)
}

// demand has an image read as it was signed, with one of keys.
func (i *openedImage) demand(image string, keys []signed.Key) error {
	sig, list, err := readSignature(image, i.File)
	if err == nil {
		_, err = sig.Verify(keys)
	}
	if err == nil && int64(len(list)) != sig.ListSize() {
		err = fmt.Errorf("%s: is cut", image+signed.Suffix)
	}
	if err == nil {
		i.list, err = noded.Sealed("hashes", list)
	}
	if err != nil {
		return err
	}
	i.head, i.statement = sig.Head, sig.Statement.String()
	return nil
}
