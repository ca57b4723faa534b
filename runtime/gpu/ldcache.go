package gpu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The dynamic loader's cache, /etc/ld.so.cache, maps names of libraries to
// paths. Its format is glibc's own: sysdeps/generic/dl-cache.h has the
// structures, elf/cache.c writes them, elf/dl-cache.c searches. All numbers are
// in the machine's byte order, little-endian wherever Squire runs.

const (
	cacheMagic    = "glibc-ld.so.cache1.1"
	oldCacheMagic = "ld.so-1.7.0\x00" // glibc before 2.32 put a second table, of another form, first
	cacheHeader   = 48                // struct cache_file_new
	cacheEntry    = 24                // struct file_entry_new
	oldEntry      = 12                // struct file_entry

	cacheLittleEndian = 2          // cache_file_new_flags_endian_little
	extensionMagic    = 0xEAA42174 // cache_extension_magic
	extensionHwcaps   = 1          // cache_extension_tag_glibc_hwcaps

	maxCache = 8 << 20 // bytes; a host with 10,000 libraries has 1 MiB
	maxName  = 256     // NAME_MAX + 1
	maxPath  = 4096    // PATH_MAX
)

// ABI is the flags field of a cache's entry: what kind of library it is.
type ABI uint32

// The ABIs of drivers (dl-cache.h: FLAG_ELF_LIBC6 with a FLAG_*).
const (
	ABIx86   ABI = 0x0003
	ABIx64   ABI = 0x0303
	ABIarm64 ABI = 0x0a03
)

// String is what ldconfig -p prints.
func (a ABI) String() string {
	switch a {
	case ABIx86:
		return "libc6"
	case ABIx64:
		return "libc6,x86-64"
	case ABIarm64:
		return "libc6,AArch64"
	}
	return fmt.Sprintf("%#x", uint32(a))
}

// ParseABI is the reverse of String.
func ParseABI(s string) (ABI, error) {
	for _, a := range []ABI{ABIx86, ABIx64, ABIarm64} {
		if a.String() == s {
			return a, nil
		}
	}
	return 0, fmt.Errorf("unknown kind of library %q", s)
}

// CacheEntry is one line of ldconfig -p.
type CacheEntry struct {
	Name string // what programs ask for, usually a SONAME
	Path string
	ABI  ABI

	os    uint32
	hwcap uint64 // which processors it is for; may count in cache.hwcaps
}

// cache is a parsed /etc/ld.so.cache.
type cache struct {
	entries []CacheEntry
	hwcaps  []string // subdirectories of glibc-hwcaps
}

var errCache = errors.New("not a cache of glibc's dynamic loader")

// parseCache reads a cache that need not be sound. It keeps within the bytes
// that are there and within time linear in them.
func parseCache(b []byte) (*cache, error) {
	if len(b) > maxCache {
		return nil, errCache
	}
	if bytes.HasPrefix(b, []byte(oldCacheMagic)) && len(b) >= 16 {
		skip := 16 + oldEntry*uint64(binary.LittleEndian.Uint32(b[12:]))
		skip = (skip + 7) &^ 7
		if skip > uint64(len(b)) {
			return nil, errCache
		}
		b = b[skip:]
	}
	if len(b) < cacheHeader || string(b[:len(cacheMagic)]) != cacheMagic {
		return nil, errCache
	}
	n := uint64(binary.LittleEndian.Uint32(b[20:]))
	if n > uint64(len(b)-cacheHeader)/cacheEntry {
		return nil, errCache
	}
	c := &cache{entries: make([]CacheEntry, 0, n)}
	text := string(b)
	for i := range n {
		e := b[cacheHeader+i*cacheEntry:]
		name, ok := stringAt(text, binary.LittleEndian.Uint32(e[4:]), maxName)
		value, ok2 := stringAt(text, binary.LittleEndian.Uint32(e[8:]), maxPath)
		if !ok || !ok2 {
			return nil, errCache
		}
		c.entries = append(c.entries, CacheEntry{
			Name: name, Path: value, ABI: ABI(binary.LittleEndian.Uint32(e)),
			os: binary.LittleEndian.Uint32(e[12:]), hwcap: binary.LittleEndian.Uint64(e[16:]),
		})
	}
	return c, c.parseExtensions(b, text)
}

// parseExtensions reads the names that hwcap fields count in.
func (c *cache) parseExtensions(b []byte, text string) error {
	at := uint64(binary.LittleEndian.Uint32(b[32:]))
	if at == 0 {
		return nil
	}
	if at%4 != 0 || at+8 > uint64(len(b)) || binary.LittleEndian.Uint32(b[at:]) != extensionMagic {
		return errCache
	}
	sections := uint64(binary.LittleEndian.Uint32(b[at+4:]))
	if sections > (uint64(len(b))-at-8)/16 {
		return errCache
	}
	for i := range sections {
		s := b[at+8+16*i:]
		if binary.LittleEndian.Uint32(s) != extensionHwcaps {
			continue
		}
		from, size := uint64(binary.LittleEndian.Uint32(s[8:])), uint64(binary.LittleEndian.Uint32(s[12:]))
		if from+size > uint64(len(b)) || len(c.hwcaps) > 0 {
			return errCache
		}
		for ; size >= 4; from, size = from+4, size-4 {
			name, ok := stringAt(text, binary.LittleEndian.Uint32(b[from:]), maxName)
			if !ok {
				return errCache
			}
			c.hwcaps = append(c.hwcaps, name)
		}
	}
	return nil
}

// stringAt returns the string of less than size bytes that starts at a place.
func stringAt(text string, at uint32, size int64) (string, bool) {
	if uint64(at) >= uint64(len(text)) {
		return "", false
	}
	s, _, ok := strings.Cut(text[at:min(int64(at)+size, int64(len(text)))], "\x00")
	return s, ok
}

// MergeCache returns a cache with the entries of old, an image's, and with
// more, which win over those of the same name. Entries of old below the
// directory of a path in more are left from an earlier time and go. An old
// one that is not sound counts as empty: glibc ignores it, too.
func MergeCache(old []byte, more []CacheEntry) []byte {
	c, err := parseCache(old)
	if err != nil {
		c = &cache{}
	}
	ours := map[string]bool{}
	for _, e := range more {
		ours[e.Path[:strings.LastIndexByte(e.Path, '/')+1]] = true
	}
	c.entries = slices.DeleteFunc(c.entries, func(e CacheEntry) bool {
		return ours[e.Path[:strings.LastIndexByte(e.Path, '/')+1]]
	})
	c.entries = append(slices.Clone(more), c.entries...)
	// The loader takes the first of one name, in a list that falls.
	slices.SortStableFunc(c.entries, func(a, b CacheEntry) int { return compareLibraries(b.Name, a.Name) })
	if b := c.encode(); len(b) <= maxCache {
		return b
	}
	// Strings that overlap in a hostile cache grew.
	return (&cache{entries: slices.Clone(more)}).encode()
}

// encode writes a cache; one that is too large is cut short and of no use.
func (c *cache) encode() []byte {
	start := cacheHeader + cacheEntry*len(c.entries)
	w := cacheStrings{at: map[string]uint32{}, start: start}
	b := append(make([]byte, 0, start), cacheMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(c.entries)))
	b = append(b, make([]byte, cacheHeader-len(b))...)
	b[28] = cacheLittleEndian
	for _, e := range c.entries {
		if w.len() > maxCache {
			return make([]byte, maxCache+1)
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(e.ABI))
		b = binary.LittleEndian.AppendUint32(b, w.add(e.Name))
		b = binary.LittleEndian.AppendUint32(b, w.add(e.Path))
		b = binary.LittleEndian.AppendUint32(b, e.os)
		b = binary.LittleEndian.AppendUint64(b, e.hwcap)
	}
	names := make([]uint32, len(c.hwcaps))
	for i, name := range c.hwcaps {
		names[i] = w.add(name)
	}
	b = append(b, w.text...)
	binary.LittleEndian.PutUint32(b[24:], uint32(len(w.text)))
	if len(names) == 0 {
		return b
	}
	b = append(b, make([]byte, (4-len(b)%4)%4)...)
	at := uint32(len(b))
	binary.LittleEndian.PutUint32(b[32:], at)
	for _, n := range []uint32{extensionMagic, 1, extensionHwcaps, 0, at + 8 + 16, uint32(4 * len(names))} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	for _, n := range names {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return b
}

// cacheStrings is the table of strings of a cache that is written.
type cacheStrings struct {
	text  []byte
	at    map[string]uint32
	start int // of the table, in the file
}

func (w *cacheStrings) len() int { return w.start + len(w.text) }

func (w *cacheStrings) add(s string) uint32 {
	at, ok := w.at[s]
	if !ok {
		at = uint32(w.len())
		w.at[s] = at
		w.text = append(append(w.text, s...), 0)
	}
	return at
}

// compareLibraries orders names as the cache does: runs of digits by value,
// and behind all else (_dl_cache_libcmp in elf/dl-cache.c).
func compareLibraries(a, b string) int {
	for a != "" && b != "" {
		da, db := digits(a), digits(b)
		switch {
		case da > 0 && db > 0:
			if c := compareDigits(a[:da], b[:db]); c != 0 {
				return c
			}
			a, b = a[da:], b[db:]
			continue
		case da > 0:
			return 1
		case db > 0:
			return -1
		case a[0] != b[0]:
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func digits(s string) (n int) {
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

func compareDigits(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}
