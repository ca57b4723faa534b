package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/fusefs/noded"
)

// watched is a service whose reports are read.
type watched struct {
	socket string
	client *noded.Client // nil: not connected
}

// seen is what a service tells, for programs.
type seen struct {
	Service string    `json:"service"` // "node", or "own": a user's
	Socket  string    `json:"socket"`
	at      time.Time // when it did
	noded.Report
}

// services asks the service of the node and those that the user has themselves.
type services struct {
	open map[string]*watched
}

// socketList lists the sockets at which services may listen. Only tests change it.
var socketList = func() []string {
	return append([]string{nodeSocketPath()}, ownSockets("/proc/net/unix", os.Geteuid())...)
}

// ownSockets finds the abstract sockets of a user's own services, of which there is one for each step of a job, in a
// list as /proc/net/unix (net/unix/af_unix.c: unix_seq_show). Who listens there is another question.
func ownSockets(list string, uid int) (sockets []string) {
	b, err := os.ReadFile(list)
	if err != nil {
		return nil // then they are not found
	}
	const accepts = "00010000" // include/linux/net.h: __SO_ACCEPTCON; what was accepted bears the same name
	prefix := fmt.Appendf(nil, "%s%d-", ownPrefix, uid)
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) == 8 && string(f[3]) == accepts && bytes.HasPrefix(f[7], prefix) && len(sockets) < maxOwn {
			sockets = append(sockets, string(f[7]))
		}
	}
	slices.Sort(sockets)
	return slices.Compact(sockets)
}

// ownPrefix begins the names of sockets of users' own services, see ownSocket.
const ownPrefix = "@squire-"

// maxOwn is how many services of one user are asked.
const maxOwn = 64

// reports asks all services, and again those that it asked before, at once: one may be slow. Those that are gone are left
// out; the error is about the others that did not answer.
func (s *services) reports() ([]seen, error) {
	sockets := socketList()
	open := make(map[string]*watched, len(sockets))
	answers, errs := make([]*seen, len(sockets)), make([]error, len(sockets))
	var asked sync.WaitGroup
	for i, socket := range sockets {
		w := s.open[socket]
		if w == nil {
			w = &watched{socket: socket}
		}
		open[socket] = w
		asked.Go(func() { answers[i], errs[i] = w.report() })
	}
	asked.Wait()
	for socket, w := range s.open {
		if open[socket] != w {
			w.close()
		}
	}
	s.open = open
	var all []seen
	for _, a := range answers {
		if a != nil {
			all = append(all, *a)
		}
	}
	return all, errors.Join(errs...)
}

func (s *services) close() {
	for _, w := range s.open {
		w.close()
	}
	s.open = nil
}

// report asks for one report, over a new connection if there is none. nil without an error: there is no service.
func (w *watched) report() (*seen, error) {
	if w.client == nil {
		c, err := noded.Dial(w.socket)
		if err != nil {
			return nil, w.missed(err)
		}
		w.client = c
	}
	r, err := w.client.Report()
	if err != nil {
		w.close()
		return nil, w.missed(err)
	}
	s := &seen{Service: "node", Socket: w.socket, at: time.Now(), Report: *r}
	if r.Own {
		s.Service = "own"
	}
	return s, nil
}

// missed is an error that is worth a word. Where nobody answers who should, that is, but anybody may take an abstract name.
func (w *watched) missed(err error) error {
	var refused *noded.ServiceError
	if errors.Is(err, noded.ErrNoService) ||
		strings.HasPrefix(w.socket, ownPrefix) && !errors.As(err, &refused) && !errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

func (w *watched) close() {
	if w.client != nil {
		w.client.Close()
		w.client = nil
	}
}

// noService is what there is to say when there is none.
const noService = `no image service is running; root starts that of the node with "systemctl start squire" or "squire daemon", and that of a user comes with their first "squire run"`

// id is how an image of a service is called on the command line: by its number, those of a user's own services behind
// that of the service's process.
func (s *seen) id(img *noded.ImageReport) string {
	if s.Own {
		return fmt.Sprintf("%d.%d", s.PID, img.ID)
	}
	return strconv.FormatUint(img.ID, 10)
}

// find returns the images that are called so: by their id, or by the name of their file as it was given or as it is
// from the root. What looks like an id is one, if there is such an image.
func find(all []seen, name string) []served {
	var byID, byName []served
	name = string([]rune(name))  // as JSON has made it: what is not UTF-8 was replaced
	abs, _ := filepath.Abs(name) // fails without a working directory: then it is the name as given that counts
	for i := range all {
		s := &all[i]
		for k := range s.Images {
			img := &s.Images[k]
			if s.id(img) == name {
				byID = append(byID, served{s, img})
			}
			if img.Name == name || img.Name == abs {
				byName = append(byName, served{s, img})
			}
		}
	}
	if len(byID) > 0 {
		return byID
	}
	return byName
}

// served is an image of a service.
type served struct {
	service *seen
	image   *noded.ImageReport
}

// figures are the counters of images.
type figures struct {
	fusefs.Stats
	Storage uint64 // bytes that were read from storage
}

func (f *figures) add(stats *fusefs.Stats, storage uint64) {
	f.Add(stats)
	f.Storage += storage
}

// operations are the kinds of requests in the order in which they are shown: as Stats.Latency has them.
var operations = []string{"lookup", "getattr", "readlink", "open", "readdir", "read", "xattr", "statfs", "other"}

// operationsOf lists the kinds of requests of which there were some: those that another version may have last.
func operationsOf(s *fusefs.Stats) (kinds []string) {
	for _, op := range slices.Concat(operations, slices.Sorted(maps.Keys(s.Latency))) {
		if !slices.Contains(kinds, op) && requestsOf(s, op) > 0 {
			kinds = append(kinds, op)
		}
	}
	return kinds
}

// requestsOf is how many requests of a kind there were.
func requestsOf(s *fusefs.Stats, operation string) uint64 {
	switch operation {
	case "lookup":
		return s.Lookup
	case "getattr":
		return s.GetAttr
	case "readlink":
		return s.Readlink
	case "open":
		return s.Open
	case "readdir":
		return s.ReadDir
	case "read":
		return s.Read
	case "xattr":
		return s.Xattr
	case "statfs":
		return s.StatFs
	}
	h := s.Latency[operation]
	return h.Count()
}

// requestCount is how many requests there were.
func requestCount(s *fusefs.Stats) (n uint64) {
	for _, op := range operationsOf(s) {
		n += requestsOf(s, op)
	}
	return n
}

// allLatencies is the histogram of all requests.
func allLatencies(s *fusefs.Stats) (all fusefs.Histogram) {
	for _, h := range s.Latency {
		all.Add(&h)
	}
	return all
}
