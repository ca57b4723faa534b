package fusefs

import "time"

// kind is what sort of request it is, for Stats.Latency.
type kind uint8

const (
	kindOther kind = iota
	kindLookup
	kindGetAttr
	kindReadlink
	kindOpen
	kindReadDir
	kindRead
	kindXattr
	kindStatFs
	kinds
)

// String returns the key of Stats.Latency.
func (k kind) String() string {
	return [kinds]string{
		"other", "lookup", "getattr", "readlink", "open", "readdir", "read", "xattr", "statfs",
	}[k]
}

// kindsOf says what request types are (include/uapi/linux/fuse.h: enum fuse_opcode).
var kindsOf = [...]kind{
	opLookup:      kindLookup,
	3:             kindGetAttr,
	5:             kindReadlink,
	14:            kindOpen,
	opRead:        kindRead,
	17:            kindStatFs,
	opGetxattr:    kindXattr,
	opListxattr:   kindXattr,
	27:            kindOpen, // OPENDIR
	opReaddir:     kindReadDir,
	opReaddirplus: kindReadDir,
	52:            kindGetAttr, // STATX
}

func kindOf(opcode uint32) kind {
	if opcode < uint32(len(kindsOf)) {
		return kindsOf[opcode]
	}
	return kindOther
}

// latencies are those of all kinds of requests.
type latencies [kinds]latency

// observe counts a request of type opcode that was answered.
func (l *latencies) observe(opcode uint32, took time.Duration) {
	if opcode != opForget && opcode != opBatchForget {
		l[kindOf(opcode)].observe(took)
	}
}

// histograms returns those of kinds of which there were any, by name, or nil.
func (l *latencies) histograms() (all map[string]Histogram) {
	for k := range kinds {
		if h := l[k].histogram(); h.Count() > 0 {
			if all == nil {
				all = make(map[string]Histogram)
			}
			all[k.String()] = h
		}
	}
	return all
}
