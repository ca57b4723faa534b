package main

import (
	"encoding/json"
	"slices"
	"strings"
)

// slurmGiven is an option of a step as Slurm told the plugin of it.
type slurmGiven struct {
	Name  string `json:"name"`  // container-NAME or no-container-NAME
	Value string `json:"value"` // "" for an option without an argument
}

// slurmMeantVariable has, as JSON, the options of a job that Slurm itself gets wrong. It passes on only the last value of
// an option that was given several times, and an inherited option together with its opposite that overrides it.
// "squire slurm check" knows better; the plugin sets the variable to what that prints. It is believed where it agrees
// with what Slurm passed on, so that one which is out of date does no harm.
const slurmMeantVariable = "SLURM_SQUIRE_OPTIONS"

// slurmLists are the options whose values are lists: given several times, they are one list.
var slurmLists = []string{"mounts", "env", "unshare"}

// key is an option's name in slurmDocument.Options, and what it says there.
func (g slurmGiven) key() (key, value string) {
	if name, ok := strings.CutPrefix(g.Name, "no-container-"); ok {
		return name, "false"
	}
	name := strings.TrimPrefix(g.Name, "container-")
	switch name {
	case "readonly":
		return "writable", "false"
	case "mount-home", "remap-root", "entrypoint", "entrypoint-log", "writable", "trace":
		return name, "true"
	}
	return name, g.Value
}

// gather makes Options and Arguments of what the plugin passed on.
func (d *slurmDocument) gather() {
	if d.Arguments == nil {
		d.Arguments = map[string]string{}
	}
	for _, arg := range d.Plugin {
		name, value, _ := strings.Cut(arg, "=")
		d.Arguments[name] = value
	}
	if d.Options == nil {
		d.Options = map[string]slurmRaw{}
	}
	before := d.meantBefore()
	d.meant = map[string]string{}
	for _, g := range d.Given {
		key, _ := g.key()
		if _, done := d.Options[key]; !done {
			d.Options[key] = d.gatherKey(key, before)
		}
	}
}

// gatherKey returns the values of an option. In srun the command line overrides what is inherited.
func (d *slurmDocument) gatherKey(key string, before map[string]string) slurmRaw {
	var direct, inherited slurmRaw
	for i, g := range d.Given {
		k, value := g.key()
		switch {
		case k != key || d.superseded(i):
		case d.inherited(i):
			inherited = append(inherited, value)
		case !slices.Contains(direct, value):
			direct = append(direct, value)
		}
	}
	values := direct
	if len(direct) == 0 {
		values = inherited
	}
	if d.Context == "" || len(direct) == 0 {
		for _, v := range values {
			if m, ok := before[key]; ok && (m == v || strings.HasSuffix(m, ","+v)) {
				d.meant[key] = m
				return slurmRaw{m}
			}
		}
	}
	several := len(values) > 1
	if several && slices.Contains(slurmLists, key) {
		values = slurmRaw{strings.Join(values, ",")}
	}
	if len(values) == 1 && (several || len(direct) > 0 && len(inherited) > 0) {
		d.meant[key] = values[0]
	}
	return values
}

// inherited says whether srun was told an option for what sbatch or salloc left in its environment: Slurm does that first.
func (d *slurmDocument) inherited(i int) bool {
	name := d.Given[i].Name
	_, left := d.lookup("SLURM_SPANK__SLURM_SPANK_OPTION_squire_" + strings.ReplaceAll(name, "-", "_"))
	return left && d.Context != "" && !slices.ContainsFunc(d.Given[:i], func(g slurmGiven) bool { return g.Name == name })
}

// superseded says whether slurmstepd was told the same option again: in the launch message, after the environment.
func (d *slurmDocument) superseded(i int) bool {
	return d.Context == "" && slices.ContainsFunc(d.Given[i+1:], func(g slurmGiven) bool { return g.Name == d.Given[i].Name })
}

// meantBefore is what the environment has of slurmMeantVariable.
func (d *slurmDocument) meantBefore() (meant map[string]string) {
	text, _ := d.lookup(slurmMeantVariable)
	if json.Unmarshal([]byte(text), &meant) != nil {
		return nil
	}
	for key, value := range meant {
		meant[key] = slurmByte(value)
	}
	return meant
}

// meantText is the new value of slurmMeantVariable, empty if it is not needed.
func (d *slurmDocument) meantText() string {
	if len(d.meant) == 0 {
		return ""
	}
	out := make(map[string]string, len(d.meant))
	for key, value := range d.meant {
		runes := make([]rune, 0, len(value))
		for _, c := range []byte(value) {
			runes = append(runes, rune(c))
		}
		out[key] = string(runes)
	}
	text, err := json.Marshal(out)
	if err != nil {
		return ""
	}
	return string(text)
}
