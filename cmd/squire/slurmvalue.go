package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/squirefs/squire/runtime"
)

// slurmValue is the value of an option, and where it is from, for messages.
type slurmValue struct {
	from   string // --container-NAME, or the name of a variable or of an argument of the plugin
	values []string
}

// slurmResolver collects what is wrong.
type slurmResolver struct {
	*slurmDocument
	errs []error
}

// bad notes an error, once.
func (r *slurmResolver) bad(from, format string, args ...any) {
	err := fmt.Errorf("%s: %w", from, fmt.Errorf(format, args...))
	if !slices.ContainsFunc(r.errs, func(e error) bool { return e.Error() == err.Error() }) {
		r.errs = append(r.errs, err)
	}
}

// value finds what counts of an option. Nil: there is nothing.
func (r *slurmResolver) value(name string) *slurmValue {
	if given := r.Options[name]; len(given) > 0 {
		return &slurmValue{slurmFlag(name), given}
	}
	opt := slurmOptionTable[name]
	for _, v := range []string{slurmVariable("SQUIRE_", name), slurmVariable("PYXIS_", name), opt.enroot} {
		value, _ := r.lookup(v)
		if v == opt.enroot { // where it may be anything
			if value = strings.ToLower(value); !isYesOrNo(value) {
				continue
			}
		}
		if value != "" {
			return &slurmValue{v, []string{value}}
		}
		if name != "writable" || v == opt.enroot {
			continue
		}
		v = strings.TrimSuffix(v, "WRITABLE") + "READONLY"
		if value, ok := r.lookup(v); ok && value != "" {
			return &slurmValue{v, []string{value}}
		}
	}
	if value, ok := r.Arguments[opt.argument]; ok && opt.argument != "" {
		return &slurmValue{"plugstack.conf: " + opt.argument, []string{value}}
	}
	return nil
}

// text is the value of an option of kindOnce. An empty one is an error.
func (r *slurmResolver) text(name string) (value, from string) {
	v := r.value(name)
	if v == nil {
		return "", ""
	}
	values := slices.Compact(slices.Clone(v.values))
	switch {
	case len(values) > 1:
		r.bad(v.from, "given twice: %s and %s", printable(values[0]), printable(values[1]))
	case values[0] == "":
		r.bad(v.from, "is empty")
	}
	return values[0], v.from
}

// list is the value of an option of kindList: its parts.
func (r *slurmResolver) list(name string) (parts []string, from string) {
	v := r.value(name)
	if v == nil {
		return nil, ""
	}
	for _, value := range v.values {
		for part := range strings.SplitSeq(value, ",") {
			if part == "" {
				r.bad(v.from, "%q: a part between the commas is empty", value)
				return nil, v.from
			}
			if !slices.Contains(parts, part) {
				parts = append(parts, part)
			}
		}
	}
	return parts, v.from
}

// flag is the value of an option of kindFlag. Nil: it has none.
func (r *slurmResolver) flag(name string) *bool {
	v := r.value(name)
	if v == nil {
		return nil
	}
	var result *bool
	for _, value := range v.values {
		on, ok := parseYes(value)
		if !ok {
			r.bad(v.from, "%s: want yes or no", printable(value))
			return nil
		}
		on = on != strings.HasSuffix(v.from, "_READONLY")
		if result != nil && *result != on {
			r.bad(v.from, "excludes %s", map[bool]string{true: "--container-readonly", false: "--no-container-" + name}[name == "writable"])
			return nil
		}
		result = &on
	}
	return result
}

func (r *slurmResolver) on(name string) bool {
	f := r.flag(name)
	return f != nil && *f
}

// parseYes reads a boolean as pyxis does.
func parseYes(s string) (on, ok bool) {
	switch s {
	case "1", "true", "yes", "y":
		return true, true
	case "0", "false", "no", "n":
		return false, true
	}
	return false, false
}

func isYesOrNo(s string) bool {
	_, ok := parseYes(s)
	return ok
}

func isYes(s string) bool {
	on, _ := parseYes(s)
	return on
}

// slurmErrors are several errors, a line each.
type slurmErrors []error

func (e slurmErrors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = runtime.OneLine(err)
	}
	return strings.Join(lines, "\n")
}

func (e slurmErrors) Unwrap() []error { return e }
