package main

import (
	"strings"
	"testing"
)

func TestExecArguments(t *testing.T) {
	for args, message := range map[string]string{
		"exec":                         "usage: squire exec",
		"exec name -- true":            "name: not a process id",
		"exec -- -4 true":              "-4: not a process id",
		"exec 0":                       "0: not a process id",
		"exec 1 --workdir / true":      "flags of squire go before the process id",
		"exec --set-env A 1 -- true":   `environment "A"`,
		"exec 2147483647 -- true":      "process 2147483647: no such process",
		"exec 99999999999999999 -- sh": "not a process id",
	} {
		if _, err := squire(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("%s: error %v, want one with %q", args, err, message)
		}
	}
}
