package gpu

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// addDevices adds what --device names: NODE[:TARGET], a directory of nodes, or
// the name of a CDI device.
func (h *Host) addDevices(r *Request, s *Set) error {
	var names []cdiName
	for _, arg := range r.Devices {
		if n, ok := parseCDIName(arg); ok {
			names = append(names, n)
			continue
		}
		if err := h.addDevice(arg, s); err != nil {
			return fmt.Errorf("--device %s: %w", arg, err)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return h.addCDI(names, s)
}

func (h *Host) addDevice(arg string, s *Set) error {
	node, target, hasTarget := strings.Cut(arg, ":")
	if !path.IsAbs(node) || hasTarget && !path.IsAbs(target) || strings.ContainsRune(arg, 0) {
		return errors.New("neither a path that starts with / nor a CDI name such as vendor.com/class=name")
	}
	node = path.Clean(node)
	if !hasTarget {
		target = node
	}
	if target = path.Clean(target); target == "/" {
		return errors.New("the target is the root itself")
	}
	st, err := h.t.stat(node)
	switch {
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		nodes := h.t.devices(node, "*")
		if len(nodes) == 0 {
			return errors.New("a directory without device nodes")
		}
		for _, n := range nodes {
			s.Nodes = append(s.Nodes, Node{Source: h.t.source(n), Target: path.Join(target, path.Base(n))})
		}
		return nil
	case st.Mode&unix.S_IFMT != unix.S_IFCHR:
		return errors.New("not a character device")
	}
	return h.addNodeAt(node, target, s)
}

// addNodeAt adds a node, whose name may be a link.
func (h *Host) addNodeAt(node, target string, s *Set) error {
	real, err := h.t.resolve(node)
	if err != nil {
		return err
	}
	s.Nodes = append(s.Nodes, Node{Source: h.t.source(real), Target: target})
	return nil
}
