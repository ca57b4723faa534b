package main

import (
	"strings"
	"testing"

	"github.com/squirefs/squire/runtime/container"
)

// A list that is empty is one, for programs: null is none, and what goes through it stops there.
func TestContainersJSON(t *testing.T) {
	for _, all := range [][]*container.Info{nil, {{Name: "dev"}}} {
		var b strings.Builder
		if err := printContainers(&b, all, true, false); err != nil || strings.Contains(b.String(), `"pids": null`) || !strings.HasPrefix(b.String(), "[") {
			t.Errorf("%v, %s", err, b.String())
		}
	}
}
