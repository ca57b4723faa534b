package runtime

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Databases of accounts, see passwd(5) and group(5). The third field of their lines is the id.
const (
	userFile  = "/etc/passwd"
	groupFile = "/etc/group"

	accountsLimit = 1 << 20 // bytes
)

// accountOps give the caller a name inside: programs ask who they run as, and some end where nobody is known by that
// number. root has a name in every image. Who is not in the host's files, as where accounts come from a directory
// service, is who the environment says.
func accountOps(s *Spec, h *Host) []Op {
	if s.RemapRoot || h.UID == 0 {
		return nil
	}
	user, group := h.User, h.Group
	if user == "" {
		user = environmentUser(s, h)
	}
	name, _, _ := strings.Cut(user, ":")
	if name == "" {
		return nil
	}
	if group == "" {
		group = name + ":x:" + strconv.Itoa(h.GID) + ":"
	}
	return []Op{
		{Do: OpAccount, Target: userFile, Flags: []string{ifPossible}, Args: []string{user}},
		{Do: OpAccount, Target: groupFile, Flags: []string{ifPossible, whenMissing}, Args: []string{group}},
	}
}

// environmentUser makes a line of the caller's variables. They may be those of root, who became the caller.
func environmentUser(s *Spec, h *Host) string {
	env := newEnvList(s.Environ)
	field := func(is func(string) bool, otherwise string, names ...string) string {
		for _, n := range names {
			if v, _ := env.get(n); v != "" && len(v) < unix.PathMax && !strings.ContainsFunc(v, func(r rune) bool { return r == ':' || r < ' ' }) && is(v) {
				return v
			}
		}
		return otherwise
	}
	name := field(func(v string) bool { return v != "root" }, "", "USER", "LOGNAME")
	if name == "" {
		return ""
	}
	return strings.Join([]string{
		name, "x", strconv.Itoa(h.UID), strconv.Itoa(h.GID), "", field(path.IsAbs, "/", "HOME"), field(path.IsAbs, "/bin/sh", "SHELL"),
	}, ":")
}

// accountOf is the first line of a database with that id, "" if there is none. Lines that are longer than any account are
// passed over.
func accountOf(database io.Reader, id int) string {
	want := strconv.Itoa(id)
	lines := bufio.NewReaderSize(database, 16<<10)
	whole := true // the line before has ended
	for {
		line, err := lines.ReadSlice('\n')
		if f := bytes.SplitN(line, []byte(":"), 4); whole && !errors.Is(err, bufio.ErrBufferFull) && len(f) > 3 && string(f[2]) == want {
			return strings.TrimRight(string(line), "\n")
		}
		if whole = err == nil; err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return ""
		}
	}
}

// hostAccount is who has an id on this machine.
func hostAccount(file string, id int) string {
	fi, err := os.Stat(file)
	if err != nil || !fi.Mode().IsRegular() || fi.Size() > accountsLimit {
		return ""
	}
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	return accountOf(f, id)
}

// account puts a line in front of the image's database, which stays as it is in a layer that is kept. An image that
// has none gets none.
func (b *builder) account(op Op) error {
	old, err := readIn(b.root, op.Target)
	if err != nil || len(old) == 0 || len(old) > accountsLimit {
		return errors.Join(errors.New("no plain file"), err)
	}
	fields := strings.Split(op.Args[0], ":")
	if len(fields) < 4 {
		return errors.New("not an account")
	}
	id, err := strconv.Atoi(fields[2])
	if err != nil {
		return err
	}
	has := accountOf(bytes.NewReader(old), id)
	if strings.HasPrefix(has, fields[0]+":") || has != "" && slices.Contains(op.Flags, whenMissing) {
		return nil
	}
	if last := &fields[len(fields)-1]; op.Target == userFile { // a shell that is in the image
		fd, err := openIn(b.root, *last)
		if err != nil {
			*last = "/bin/sh"
		} else {
			unix.Close(fd)
		}
	}
	return b.text(op.Target, append([]byte(strings.Join(fields, ":")+"\n"), old...))
}
