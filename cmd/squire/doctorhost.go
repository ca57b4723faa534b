package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/runtime/gpu"
)

// Versions of the kernel that matter.
var (
	kernelNeeded = version2{5, 14} // what Squire is written for
	kernelResend = version2{6, 9}  // FUSE_NOTIFY_RESEND
	kernelIDMap  = version2{6, 12} // FUSE_ALLOW_IDMAP
)

type version2 struct{ major, minor int }

func (v version2) before(o version2) bool {
	return v.major < o.major || v.major == o.major && v.minor < o.minor
}

// parseVersion2 reads the first two numbers of a version like "6.18.4-generic" or "22.05.8".
func parseVersion2(s string) (v version2, ok bool) {
	n, err := fmt.Sscanf(s, "%d.%d", &v.major, &v.minor)
	return v, err == nil && n == 2
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func (d *doctor) kernel() {
	release := d.release()
	v, ok := parseVersion2(release)
	switch {
	case !ok:
		d.found("kernel", findingWarning, "", "Linux %q: which version is that?", release)
	case v.before(kernelNeeded):
		d.found("kernel", findingFailed, "install Linux 5.14 or newer", "Linux %s is too old", release)
	case v.before(kernelResend):
		d.found("kernel", findingNote, "Linux 6.9 resends them", "Linux %s: when the server of the node service dies, reads under way fail", release)
	case v.before(kernelIDMap):
		d.found("kernel", findingNote, "Linux 6.12 has idmapped FUSE mounts", "Linux %s: the node service mounts an image once for each user", release)
	default:
		d.ok("kernel", "Linux %s", release)
	}
}

// fuse looks at /dev/fuse. Where the service of the node mounts, users can do without.
func (d *doctor) fuse(p *probeResult, service bool) {
	state := findingFailed
	if service {
		state = findingWarning
	}
	fi, err := os.Stat(d.path("/dev/fuse"))
	switch {
	case err != nil:
		d.found("fuse", state, "modprobe fuse", "there is no /dev/fuse")
	case fi.Mode()&os.ModeCharDevice == 0:
		d.found("fuse", state, "remove it, and modprobe fuse", "/dev/fuse is not a device")
	case fi.Mode().Perm()&0o666 != 0o666:
		d.found("fuse", state, `chmod 666 /dev/fuse, and for the next boot a udev rule: KERNEL=="fuse", MODE="0666"`,
			"/dev/fuse has mode %04o: users cannot open it", fi.Mode().Perm())
	case p.Device != "":
		d.found("fuse", state, "modprobe fuse; look for a device cgroup or security module that keeps users from it", "users cannot open /dev/fuse: %s", p.Device)
	case p.Namespace == "" && p.FUSE != "":
		d.found("fuse", state, "", "users cannot mount it in a user namespace: %s", p.FUSE)
	default:
		d.ok("fuse", "/dev/fuse is open to users")
	}
}

// namespaceSwitches are the settings of the kernel that keep users from making namespaces.
var namespaceSwitches = []struct{ name, bad, mend string }{
	{"user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=65536, and in /etc/sysctl.d for the next boot"},
	{"user/max_mnt_namespaces", "0", "sysctl -w user.max_mnt_namespaces=65536, and in /etc/sysctl.d for the next boot"},
	{"kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1, and in /etc/sysctl.d for the next boot"},
	{"kernel/apparmor_restrict_unprivileged_userns", "1", `an AppArmor profile for squire with the line "userns,"; or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`},
}

// fewNamespaces is a limit that a node with many tasks reaches: a container of each user has one, and one more for each
// that is being started.
const fewNamespaces = 1024

func (d *doctor) userNamespaces(p *probeResult) {
	for _, s := range namespaceSwitches {
		if d.sysctl(s.name) == s.bad && p.Namespace != "" {
			d.found("namespaces", findingFailed, s.mend, "users cannot make user namespaces: %s is %s", strings.ReplaceAll(s.name, "/", "."), s.bad)
			return
		}
	}
	if p.Namespace != "" {
		d.found("namespaces", findingFailed, "look for a security module, a chroot or a container that keeps users from it", "users cannot make user namespaces: %s", p.Namespace)
		return
	}
	for _, s := range namespaceSwitches[:2] {
		if n, err := strconv.Atoi(d.sysctl(s.name)); err == nil && n < fewNamespaces {
			d.found("namespaces", findingWarning, s.mend, "%s is %d: few for a node with many tasks", strings.ReplaceAll(s.name, "/", "."), n)
			return
		}
	}
	d.ok("namespaces", "users can make user and mount namespaces")
}

func (d *doctor) sysctl(name string) string {
	text, _ := os.ReadFile(d.path("/proc/sys/" + name))
	return strings.TrimSpace(string(text))
}

func (d *doctor) overlay(p *probeResult) {
	switch {
	case p.Namespace != "":
	case p.Overlay != "":
		d.found("overlayfs", findingWarning, "modprobe overlay, and in /etc/modules-load.d for the next boot",
			"users cannot mount overlayfs: --writable will not work, nor mounts where an image has no place: %s", p.Overlay)
	default:
		d.ok("overlayfs", "works in user namespaces (userxattr)")
	}
}

// fusermount is for squire mount of users where there is no service.
func (d *doctor) fusermount(service bool) {
	name := ""
	for _, dir := range []string{"/usr/bin", "/bin", "/usr/local/bin"} {
		if fi, err := os.Stat(d.path(filepath.Join(dir, "fusermount3"))); err == nil {
			if fi.Mode()&os.ModeSetuid != 0 {
				d.ok("fusermount3", "%s", filepath.Join(dir, "fusermount3"))
				return
			}
			name = filepath.Join(dir, "fusermount3")
		}
	}
	state, why := findingNote, "is not there"
	if name != "" {
		state, why = findingWarning, name+" is not set-user-ID root"
	}
	if service {
		state = findingNote
	}
	d.found("fusermount3", state, "install the package fuse3", "%s: without the service of the node, users cannot use squire mount (squire run does not need it)", why)
}

// nodeReports asks the service of the node alone.
func nodeReports() ([]seen, error) {
	w := &watched{socket: nodeSocketPath()}
	defer w.close()
	s, err := w.report()
	if s == nil {
		return nil, err
	}
	return []seen{*s}, err
}

func (d *doctor) service(all []seen, err error) {
	const reload = "systemctl reload squire: images stay mounted"
	switch {
	case err != nil:
		d.found("service", findingWarning, "systemctl restart squire; journalctl -u squire", "the service of the node does not answer: %v", err)
		return
	case len(all) == 0:
		d.found("service", findingNote, "systemctl enable --now squire.socket squire.service", "there is no service of the node: each step mounts its images for itself")
		return
	}
	s := &all[0]
	switch {
	case s.Draining:
		d.found("service", findingWarning, "systemctl start squire", "the service of the node is about to end")
	case s.Stale:
		d.found("service", findingWarning, "journalctl -u squire", "the server of the node service does not answer")
	case s.Version != versionString():
		d.found("service", findingWarning, reload, "the service of the node is version %s, and this is %s", s.Version, versionString())
	case d.inJob(&s.Report):
		d.found("service", findingWarning, "start it with systemd, or before slurmd", "the service of the node is in the cgroup of a job, and will end with it")
	default:
		d.ok("service", "version %s, %s, %s", s.Version, plural(int64(len(s.Images)), "image"), plural(int64(s.Clients), "connection"))
	}
}

// inJob reports whether a service is in a cgroup that Slurm made for a job.
func (d *doctor) inJob(r *noded.Report) bool {
	text, _ := os.ReadFile(d.path(fmt.Sprintf("/proc/%d/cgroup", r.PID)))
	groups := strings.FieldsFunc(string(text), func(r rune) bool { return r == '/' || r == '\n' })
	return slices.ContainsFunc(groups, isJobGroup)
}

// Types of file systems that overlayfs takes no upper directory of, as statfs(2) tells them.
var noUpper = map[int64]string{
	0x6969: "NFS", 0x0bd00bd0: "Lustre", 0x794c7630: "overlayfs", 0x65735546: "FUSE", 0x47504653: "GPFS", 0x19830326: "BeeGFS",
}

// places looks at where named containers and imports go.
func (d *doctor) places() {
	site, err := siteConfig()
	if err != nil {
		return // that is told already
	}
	data, err := dataDir()
	if err != nil {
		d.found("data", findingWarning, "", "%s", runtime.OneLine(err))
		return
	}
	dir, st := existing(d.path(data))
	if name := noUpper[st.Type]; name != "" {
		d.found("data", findingWarning, "a directory of a local disk, as data in squire.toml", "named containers are in %s, on %s, which cannot hold writable layers", dir, name)
	} else if !d.missingAbove("data", data, site.Data) {
		d.ok("data", "named containers in %s, %s free", data, sizeString(int64(st.Bavail)*st.Bsize))
	}
	if cache := cacheDir(); cache != "" && !d.missingAbove("cache", cache, site.Cache) {
		_, st = existing(d.path(cache))
		d.ok("cache", "imports in %s, %s free", cache, sizeString(int64(st.Bavail)*st.Bsize))
	}
}

// missingAbove tells of a directory that the site names if what it is to be made in is not there: that is the administrator's
// to make, and users get an error until then.
func (d *doctor) missingAbove(check, dir, bySite string) bool {
	above := filepath.Dir(dir)
	if _, err := os.Stat(d.path(above)); dir != bySite || !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	d.found(check, findingWarning, "install -d -m 1777 "+above, "%s is missing, in which %s of squire.toml puts %s", above, check, dir)
	return true
}

// existing is the first directory on the way up that there is.
func existing(dir string) (string, *unix.Statfs_t) {
	st := new(unix.Statfs_t)
	for unix.Statfs(dir, st) != nil && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
	}
	return dir, st
}

// gpus looks for GPUs as squire run does, and for those that have no driver.
func (d *doctor) gpus() {
	host, err := gpu.Discover(d.root)
	if err != nil {
		d.found("gpus", findingWarning, "", "%v", err)
		return
	}
	defer host.Close()
	count := make(map[gpu.Vendor]int64)
	for i := range host.GPUs {
		count[host.GPUs[i].Vendor]++
	}
	if _, err := os.Stat(d.path("/dev/nvidia-uvm")); err != nil && count[gpu.NVIDIA] > 0 {
		d.found("gpus", findingWarning, "nvidia-modprobe -u -c 0, at each boot (nvidia-persistenced does it)", "there is no /dev/nvidia-uvm: CUDA will not work")
		return
	}
	if n := d.nvidiaDevices(); n > 0 && count[gpu.NVIDIA] == 0 {
		d.found("gpus", findingWarning, "install NVIDIA's driver, and modprobe nvidia; nvidia-smi", "%s of NVIDIA without a driver", plural(n, "GPU"))
		return
	}
	if len(host.GPUs) == 0 {
		d.found("gpus", findingNote, "", "there are no GPUs")
		return
	}
	var words []string
	for _, v := range []struct {
		vendor gpu.Vendor
		name   string
	}{{gpu.NVIDIA, "NVIDIA"}, {gpu.AMD, "AMD"}, {gpu.Intel, "Intel"}} {
		if n := count[v.vendor]; n > 0 {
			words = append(words, fmt.Sprintf("%d of %s", n, v.name))
		}
	}
	d.ok("gpus", "%s", strings.Join(words, ", "))
}

// nvidiaDevices counts NVIDIA's display and 3D controllers on the PCI bus (class 03xxxx).
func (d *doctor) nvidiaDevices() (n int64) {
	const dir = "/sys/bus/pci/devices"
	entries, _ := os.ReadDir(d.path(dir))
	for _, e := range entries {
		vendor, _ := os.ReadFile(d.path(filepath.Join(dir, e.Name(), "vendor")))
		class, _ := os.ReadFile(d.path(filepath.Join(dir, e.Name(), "class")))
		if strings.TrimSpace(string(vendor)) == "0x10de" && bytes.HasPrefix(class, []byte("0x03")) {
			n++
		}
	}
	return n
}

// probeResult is what an ordinary user could not do: "" for what worked.
type probeResult struct {
	Device    string // open /dev/fuse
	Namespace string // make a user and a mount namespace
	Overlay   string // mount overlayfs there, and write to it
	FUSE      string // mount FUSE there
}

// probe tries it, in processes of its own: as nobody if this is root.
func probe() (r probeResult) {
	out, err := forkProbe(probeName)
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		r.Namespace = fmt.Sprintf("the attempt failed: %v", err)
	}
	return r
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}
