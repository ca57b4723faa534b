package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Where each user has a group of their own, as Debian and Red Hat make them, users have a umask of 002: what they make
// may be written to by their group, which is themselves.

// privateGroup is this user's own group, -1 if there is none. The system's databases are asked as C programs ask them, by
// getent(1): in large sites users are in no file.
var privateGroup = sync.OnceValue(func() int64 {
	ctx, cancel := context.WithTimeout(context.Background(), askPatience)
	defer cancel()
	group := ownGroup(os.Geteuid(), func(database string, key ...string) []string {
		out, _ := exec.CommandContext(ctx, "getent", append([]string{database}, key...)...).Output() // nothing: not known
		return strings.Split(strings.TrimSpace(string(out)), "\n")
	})
	if ctx.Err() != nil {
		return -1 // half of a list says nothing
	}
	return group
})

// askPatience is for a directory service that does not answer, or that lists all of a university.
const askPatience = 5 * time.Second

// ownGroup is the group that is a user's own: the user's first one, of the user's name, without other members, as far as
// the databases tell. look returns the lines of one, or those of a key.
func ownGroup(uid int, look func(database string, key ...string) []string) int64 {
	user := strings.Split(look("passwd", strconv.Itoa(uid))[0], ":")
	if len(user) < 4 {
		return -1
	}
	name, gid := user[0], user[3]
	group := strings.Split(look("group", gid)[0], ":")
	if len(group) < 4 || group[0] != name || group[2] != gid {
		return -1
	}
	if slices.ContainsFunc(strings.Split(group[3], ","), func(member string) bool { return member != "" && member != name }) {
		return -1
	}
	for _, line := range look("passwd") { // those that can be listed: a directory service often does not
		if other := strings.Split(line, ":"); len(other) > 3 && other[3] == gid && other[0] != name {
			return -1
		}
	}
	number, err := strconv.ParseUint(gid, 10, 32)
	if err != nil || number == 0 {
		return -1
	}
	return int64(number)
}

// onlyOwner reports whether nobody but the user and root may write to a directory. With an access control list the bits
// for the group are those for all that are in the list (acl(5)).
func onlyOwner(name string, st *unix.Stat_t) bool {
	switch {
	case st.Mode&0o002 != 0:
		return false
	case st.Mode&0o020 == 0:
		return true
	}
	_, err := unix.Lgetxattr(name, "system.posix_acl_access", nil)
	return (errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP)) && int64(st.Gid) == privateGroup()
}
