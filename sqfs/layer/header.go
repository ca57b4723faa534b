package layer

import (
	"archive/tar"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/pack"
)

// maxTarget is what Linux follows, PATH_MAX less one; its squashfs refuses targets that do
// not fit a page.
const maxTarget = 4095

// types of entries, but for links, as inodes. Contiguous files ('7') are files, POSIX says;
// archive/tar turns '\0' into files or directories.
var types = map[byte]sqfs.Type{
	tar.TypeReg:       sqfs.TypeFile,
	tar.TypeCont:      sqfs.TypeFile,
	tar.TypeGNUSparse: sqfs.TypeFile,
	tar.TypeLink:      sqfs.TypeFile, // its metadata are for a file that exists
	tar.TypeSymlink:   sqfs.TypeSymlink,
	tar.TypeChar:      sqfs.TypeChar,
	tar.TypeBlock:     sqfs.TypeBlock,
	tar.TypeDir:       sqfs.TypeDir,
	tar.TypeFifo:      sqfs.TypeFifo,
}

// inode makes an inode of a header, without contents.
func (m *merger) inode(h *tar.Header) (*pack.Inode, error) {
	t, ok := types[h.Typeflag]
	if !ok {
		return nil, fmt.Errorf("entries of type %q are not known", h.Typeflag)
	}
	i := &pack.Inode{Type: t, Mode: uint16(h.Mode & 0o7777), ModTime: h.ModTime.Unix()}
	if !m.o.AllRoot {
		var err error
		if i.UID, err = owner(h.Uid); err != nil {
			return nil, err
		}
		if i.GID, err = owner(h.Gid); err != nil {
			return nil, err
		}
	}
	switch t {
	case sqfs.TypeSymlink:
		if n := len(h.Linkname); n == 0 || n > maxTarget {
			return nil, fmt.Errorf("the symlink's target has %d bytes, not 1 to %d", n, maxTarget)
		}
		i.Target = strings.Clone(h.Linkname)
		if err := m.charge(int64(len(i.Target))); err != nil {
			return nil, err
		}
	case sqfs.TypeChar, sqfs.TypeBlock:
		// Twelve and twenty bits, as Linux has them (kdev_t.h).
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return nil, fmt.Errorf("the device number %d:%d is out of range", h.Devmajor, h.Devminor)
		}
		major, minor := uint32(h.Devmajor), uint32(h.Devminor)
		i.Rdev = major<<8 | minor&0xff | minor&^0xff<<12
	}
	return i, m.attributes(i, h)
}

// owner checks a user or group. The highest number is no owner in Linux (uidgid.h).
func owner(id int) (uint32, error) {
	if id < 0 || id >= math.MaxUint32 {
		return 0, fmt.Errorf("owner %d is out of range", id)
	}
	return uint32(id), nil
}

// Prefixes of the PAX records that hold extended attributes: those of star, GNU tar and
// all container tools, and those of libarchive.
const (
	schily  = "SCHILY.xattr."
	archive = "LIBARCHIVE.xattr."
)

// attributes gives an inode the extended attributes of its header.
func (m *merger) attributes(i *pack.Inode, h *tar.Header) error {
	var keys []string
	for key := range h.PAXRecords {
		switch {
		case strings.HasPrefix(key, schily), strings.HasPrefix(key, archive):
			keys = append(keys, key)
		case strings.HasPrefix(key, "SCHILY.acl."):
			m.drop("an access control list", h.Name)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		value := h.PAXRecords[key]
		name, ok := strings.CutPrefix(key, schily)
		if !ok {
			if name, value, ok = libarchive(key, value); !ok {
				m.drop("an attribute in libarchive's form that cannot be decoded", h.Name)
				continue
			}
			if _, both := h.PAXRecords[schily+name]; both {
				continue
			}
		}
		if why := m.unwanted(name, value, h.Typeflag); why != "" {
			m.drop(why, h.Name)
			continue
		}
		i.Xattrs = append(i.Xattrs, pack.Xattr{Name: strings.Clone(name), Value: []byte(value)})
		if err := m.charge(int64(64 + len(name) + len(value))); err != nil {
			return err
		}
	}
	slices.SortFunc(i.Xattrs, func(a, b pack.Xattr) int { return strings.Compare(a.Name, b.Name) })
	i.Xattrs = slices.CompactFunc(i.Xattrs, func(a, b pack.Xattr) bool { return a.Name == b.Name })
	return nil
}

// libarchive decodes its form of an attribute, which most of its archives have beside the
// other: the name is escaped as in URLs, the value is in base 64, mostly without padding.
func libarchive(key, value string) (string, string, bool) {
	name, err := url.PathUnescape(strings.TrimPrefix(key, archive))
	if err != nil {
		return "", "", false
	}
	b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
	return name, string(b), err == nil
}

// unwanted tells why an attribute is left out; "" is not at all.
func (m *merger) unwanted(name, value string, typ byte) string {
	space, rest, _ := strings.Cut(name, ".")
	switch {
	case len(name) > maxName || strings.Contains(name, "\x00"):
		return "an attribute whose name Linux does not take"
	case len(value) > 65536:
		return fmt.Sprintf("attribute %q, of more than 64 KiB", name)
	case space == "user" && rest != "" && typ != tar.TypeReg && types[typ] != sqfs.TypeFile && typ != tar.TypeDir:
		return fmt.Sprintf("attribute %q, which only files and directories can have", name)
	case rest != "" && (space == "user" || space == "security" || space == "trusted") && m.o.Plain:
		return ""
	case space == "user" && rest != "" && !strings.HasPrefix(rest, "overlay.") && !strings.HasPrefix(rest, "fuseoverlayfs."):
		return ""
	case space == "security" && rest != "" && rest != "selinux":
		return ""
	}
	return fmt.Sprintf("attribute %q, which images do not keep", name)
}

// dropped counts what was left out for one reason.
type dropped struct {
	why, first string
	count      int64
}

// drop notes that something was left out.
func (m *merger) drop(why, entry string) {
	if d, ok := m.droppedBy[why]; ok {
		d.count++
		return
	}
	// Reasons quote names, which are endless. The last line speaks for all that come late.
	if len(m.dropped) >= maxDropped-1 {
		why = "other attributes and entries"
		if d, ok := m.droppedBy[why]; ok {
			d.count++
			return
		}
	}
	d := &dropped{strings.Clone(why), fmt.Sprintf("%s: %.200q", m.layerName(m.layer), entry), 1}
	m.dropped = append(m.dropped, d)
	m.droppedBy[d.why] = d
}

const maxDropped = 100

// lines writes out what was left out, in the order in which it was first met.
func (m *merger) lines() []string {
	var all []string
	for _, d := range m.dropped {
		line := fmt.Sprintf("%s: %s", d.first, d.why)
		if d.count > 1 {
			line = fmt.Sprintf("%s (and %d more)", line, d.count-1)
		}
		all = append(all, line)
	}
	return all
}

var errMemory = errors.New("headers, names and attributes need more memory than is allowed")

// charge counts memory that the merge holds on to.
func (m *merger) charge(bytes int64) error {
	if m.memory -= bytes; m.memory < 0 {
		return fmt.Errorf("%w: %d MiB (Options.MaxMemory)", errMemory, m.o.MaxMemory>>20)
	}
	return nil
}
