package main

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	pluginFile = "spank_squire.so"
	pyxisFile  = "spank_pyxis.so"
)

// slurmDirs are where a slurm.conf may be, the last for nodes that get it from slurmctld (slurmd(8), --conf-server).
var slurmDirs = []string{
	"/etc/slurm", "/etc/slurm-llnl", "/usr/local/etc/slurm", "/usr/local/etc", "/opt/slurm/etc", "/run/slurm/conf", "/var/spool/slurmd/conf-cache",
}

// pluginDirs are where Slurm looks for plugins whose path is not absolute, beside PluginDir and its own prefix.
var pluginDirs = []string{
	"/usr/lib64/slurm", "/usr/lib/slurm", "/usr/lib/x86_64-linux-gnu/slurm-wlm", "/usr/lib/aarch64-linux-gnu/slurm-wlm",
	"/usr/lib/x86_64-linux-gnu/slurm", "/usr/lib/aarch64-linux-gnu/slurm", "/usr/local/lib/slurm", "/opt/slurm/lib/slurm",
}

// slurmPlugins are where Slurm's plugins may be. Where there are several Slurms, the one in PATH is the one that is used.
func slurmPlugins(pluginDir string) []string {
	if pluginDir != "" {
		return strings.Split(pluginDir, ":")
	}
	for _, name := range []string{"srun", "slurmd"} {
		if file, err := exec.LookPath(name); err == nil {
			if file, err = filepath.EvalSymlinks(file); err == nil {
				prefix := filepath.Dir(filepath.Dir(file))
				return append([]string{filepath.Join(prefix, "lib64/slurm"), filepath.Join(prefix, "lib/slurm")}, pluginDirs...)
			}
		}
	}
	return pluginDirs
}

// slurm looks for Slurm, and for the plugin in its configuration.
func (d *doctor) slurm() {
	dir := d.slurmDir()
	if dir == "" {
		d.found("slurm", findingNote, "", "there is no Slurm here")
		return
	}
	conf := slurmSettings(readText(filepath.Join(dir, "slurm.conf")))
	stack := filepath.Join(dir, "plugstack.conf")
	if s := conf["plugstackconfig"]; s != "" {
		stack = d.path(s)
	}
	const add = "add to it, for a plugin that was installed there: required /usr/local/lib/squire/" + pluginFile
	plugins, err := d.plugstack(stack, 0)
	if err != nil {
		d.found("slurm", findingNote, add, "no plugstack.conf: %v", err)
		return
	}
	i := slices.IndexFunc(plugins, func(p spankPlugin) bool { return filepath.Base(p.path) == pluginFile })
	if i < 0 {
		d.found("slurm", findingNote, add, "%s does not have %s: srun has no --container options", stack, pluginFile)
		return
	}
	if slices.ContainsFunc(plugins, func(p spankPlugin) bool { return filepath.Base(p.path) == pyxisFile }) {
		d.found("slurm", findingWarning, "remove pyxis's line", "%s has %s too: both want the same options", stack, pyxisFile)
		return
	}
	d.plugin(&plugins[i], conf)
}

// slurmDir is the directory of the configuration, "" if there is none.
func (d *doctor) slurmDir() string {
	dirs := slurmDirs
	if conf := os.Getenv("SLURM_CONF"); filepath.IsAbs(conf) {
		dirs = append([]string{filepath.Dir(conf)}, dirs...)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(d.path(filepath.Join(dir, "slurm.conf"))); err == nil {
			return d.path(dir)
		}
	}
	return ""
}

// readText is a file that need not be there, of a sensible size.
func readText(name string) []byte {
	if fi, err := os.Stat(name); err != nil || !fi.Mode().IsRegular() || fi.Size() > maxSiteFile {
		return nil
	}
	text, _ := os.ReadFile(name)
	return text
}

// slurmSettings reads the settings of a slurm.conf, by their names in small letters (slurm.conf(5)). Those of nodes and
// partitions, of which there are many in a line, are of no interest here.
func slurmSettings(text []byte) map[string]string {
	settings := make(map[string]string)
	for line := range bytes.Lines(text) {
		before, _, _ := bytes.Cut(line, []byte("#"))
		if name, value, ok := strings.Cut(strings.TrimSpace(string(before)), "="); ok {
			settings[strings.ToLower(strings.TrimSpace(name))] = strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return settings
}

// spankPlugin is a line of plugstack.conf.
type spankPlugin struct {
	path      string
	arguments []string
}

// maxIncludes bounds files that include files.
const maxIncludes = 8

// plugstack reads a plugstack.conf, with those that it includes (spank(7)).
func (d *doctor) plugstack(name string, depth int) (plugins []spankPlugin, err error) {
	if depth > maxIncludes {
		return nil, fmt.Errorf("%s: is included too deep", name)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, unwrapPath(name, err)
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(line)
		switch {
		case len(words) < 2:
		case words[0] == "include":
			pattern := words[1]
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(name), pattern)
			} else {
				pattern = d.path(pattern)
			}
			names, _ := filepath.Glob(pattern)
			for _, n := range names {
				more, err := d.plugstack(n, depth+1)
				if err != nil {
					return nil, err
				}
				plugins = append(plugins, more...)
			}
		case words[0] == "required" || words[0] == "optional":
			plugins = append(plugins, spankPlugin{words[1], words[2:]})
		}
	}
	return plugins, lines.Err()
}

// program is what the plugin executes: what its argument says, or what it was built for, which is the squire that "make
// install" puts beside it.
func (p *spankPlugin) program() string {
	for _, a := range p.arguments {
		if value, ok := strings.CutPrefix(a, "squire="); ok {
			return value
		}
	}
	if prefix, ok := strings.CutSuffix(filepath.Dir(p.path), "/lib/squire"); ok && filepath.IsAbs(p.path) {
		return filepath.Join("/", prefix, "bin/squire")
	}
	return "/usr/local/bin/squire"
}

// plugin looks at our plugin's file, at what it was built for, and at the program that it executes.
func (d *doctor) plugin(p *spankPlugin, conf map[string]string) {
	name := d.pluginPath(p.path, conf["plugindir"])
	built, err := pluginVersion(name)
	if err != nil {
		d.found("slurm", findingWarning, "make install-spank", "plugstack.conf has %s: %v", p.path, err)
		return
	}
	var st unix.Stat_t
	if err = unix.Stat(name, &st); err != nil || !isSites(&st) {
		d.found("slurm", findingWarning, "chown root:root, chmod 644", "%s: root loads it, and others than root can write to it", name)
		return
	}
	if have, ok := d.slurmVersion(conf["plugindir"]); ok && have != built {
		d.found("slurm", findingWarning, "build the plugin against this Slurm's headers: make spank", "%s was built for Slurm %d.%02d, and this is %d.%02d",
			name, built.major, built.minor, have.major, have.minor)
		return
	}
	program := p.program()
	if err = unix.Stat(d.path(program), &st); err != nil || st.Mode&0o111 == 0 || !isSites(&st) {
		d.found("slurm", findingWarning, "make install; or the argument squire=PATH in plugstack.conf", "the plugin executes %s, which is not a program of root's", program)
		return
	}
	if strings.EqualFold(conf["proctracktype"], "proctrack/pgid") {
		d.found("slurm", findingWarning, "ProctrackType=proctrack/cgroup in slurm.conf", "Slurm finds processes by their group: those that leave it outlive the job until the epilog")
		return
	}
	d.ok("slurm", "%s for Slurm %d.%02d, executes %s", name, built.major, built.minor, program)
}

// pluginPath is where Slurm finds a plugin.
func (d *doctor) pluginPath(path, pluginDir string) string {
	if filepath.IsAbs(path) {
		return d.path(path)
	}
	for _, dir := range slurmPlugins(pluginDir) {
		if name := d.path(filepath.Join(dir, path)); unix.Access(name, unix.F_OK) == nil {
			return name
		}
	}
	return path
}

// pluginVersion is the version of Slurm that a plugin was built for: its plugin_version (slurm/spank.h)
// has it in three bytes, see SLURM_VERSION_NUM.
func pluginVersion(name string) (v version2, err error) {
	f, err := elf.Open(name)
	if err != nil {
		return v, unwrapPath(name, err)
	}
	defer f.Close()
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return v, fmt.Errorf("%s: %w", name, err)
	}
	for _, s := range symbols {
		if s.Name != "plugin_version" || int(s.Section) >= len(f.Sections) {
			continue
		}
		section := f.Sections[s.Section]
		var b [4]byte
		if _, err := section.ReadAt(b[:], int64(s.Value-section.Addr)); err != nil {
			return v, fmt.Errorf("%s: %w", name, err)
		}
		n := binary.NativeEndian.Uint32(b[:])
		return version2{int(n >> 16 & 0xff), int(n >> 8 & 0xff)}, nil
	}
	return v, fmt.Errorf("%s: is no plugin of Slurm", name)
}

// slurmVersion is that of the plugins that came with Slurm, false if there are none. Slurm's commands tell theirs only
// where there is a configuration that they can read.
func (d *doctor) slurmVersion(pluginDir string) (version2, bool) {
	for _, dir := range slurmPlugins(pluginDir) {
		names, _ := filepath.Glob(d.path(filepath.Join(dir, "select_*.so")))
		for _, name := range names {
			if v, err := pluginVersion(name); err == nil {
				return v, true
			}
		}
	}
	return version2{}, false
}
