package main

import (
	"slices"
	"strings"

	"github.com/squirefs/squire/runtime"
)

// taskEnviron says how the environment of a task changes with the container: which variables are set, as NAME=VALUE, and
// which are unset. task is what Slurm gives the task, image what the image and its entrypoint set, dir the working
// directory inside. The rules are those of "squire run"; touched are the variables that they are about. It changes nothing
// of spec.
func taskEnviron(spec *runtime.Spec, touched map[string]bool, task, image []string, dir string) (set, unset []string) {
	task = slices.DeleteFunc(slices.Clone(task), func(kv string) bool { // most: a task has a hundred of Slurm's
		name, _, ok := strings.Cut(kv, "=")
		return !ok || !touched[name]
	})
	own := *spec
	own.Environ = task
	had := make(map[string]string, len(task))
	for _, kv := range task {
		if name, value, ok := strings.Cut(kv, "="); ok {
			had[name] = value
		}
	}
	has := make(map[string]bool, len(task))
	for _, kv := range runtime.TaskEnvironment(&own, image, dir) {
		name, value, _ := strings.Cut(kv, "=")
		has[name] = true
		if old, ok := had[name]; !ok || old != value {
			set = append(set, kv)
		}
	}
	for _, kv := range task {
		if name, _, ok := strings.Cut(kv, "="); ok && !has[name] {
			unset = append(unset, name)
			has[name] = true
		}
	}
	return set, unset
}
