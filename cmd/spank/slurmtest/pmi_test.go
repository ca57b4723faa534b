package slurmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// mpi is the image that testdata/programs.sh makes, for every user to read.
func (l *lab) mpi(t *testing.T) (image string) {
	t.Helper()
	from := filepath.Join(filepath.Dir(debian()), "programs.sqsh")
	image = filepath.Join(l.userDir(t), "programs.sqsh")
	if os.Link(from, image) == nil {
		return image
	}
	content, err := os.ReadFile(from)
	if err != nil {
		t.Skipf("needs an image with MPI: run testdata/programs.sh: %v", err)
	}
	if err = os.WriteFile(image, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return image
}

// pmixOrSkip skips a test where Slurm's plugin for PMIx does not find its library.
func pmixOrSkip(t *testing.T) {
	t.Helper()
	if found, _ := filepath.Glob("/usr/lib/*/pmix2/lib/libpmix.so"); len(found) == 0 {
		t.Skip("needs PMIx for Slurm: apt-get install libpmix-dev")
	}
}

// program puts a file of testdata where the user can read it.
func (l *lab) program(t *testing.T, name string) (path string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(l.userDir(t), name)
	if err = os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// contained are the two ways to run a command line as tasks in a container: by the plugin, and by the launcher.
func (l *lab) contained(image string, srun []string, options []string, command ...string) map[string][]string {
	var plugin, launcher []string
	for _, o := range options {
		plugin = append(plugin, "--container-"+o)
		launcher = append(launcher, "--"+o)
	}
	plugin = append(append(append([]string{"srun"}, srun...), append(plugin, "--container-image="+image)...), command...)
	launcher = append(append(append([]string{"srun"}, srun...), append([]string{l.squire, "run"}, launcher...)...), append([]string{image, "--"}, command...)...)
	return map[string][]string{"plugin": plugin, "launcher": launcher}
}

// Debian's MPI libraries find their ranks through PMI and PMIx, and pass data within a node through shared memory and by
// reading each other's memory, which the kernel allows in one user namespace.
func TestMPI(t *testing.T) {
	l := theLab(t)
	image, program := l.mpi(t), l.program(t, "mpi.py")
	for _, tt := range []struct {
		library, mpi string
		nodes, tasks int
		shared       bool
	}{
		// MPICH's UCX takes two nodes of this cluster for one machine, and ends late over TCP, also without a container.
		{"mpich", "pmi2", 1, 4, true},
		{"openmpi", "pmix", 1, 4, true},
		{"openmpi", "pmix", 2, 6, true},
	} {
		srun := []string{"--mpi=" + tt.mpi, fmt.Sprint("--nodes=", tt.nodes), fmt.Sprint("--ntasks-per-node=", tt.tasks/tt.nodes)}
		options := []string{"mounts=" + program}
		if tt.nodes > 1 { // they are one machine, and Open MPI calls what ranks share by the machine's name
			options = append(options, "unshare=ipc")
		}
		for way, argv := range l.contained(image, srun, options, "python3", program, tt.library) {
			t.Run(fmt.Sprintf("%s/%s/%d/%s", tt.library, tt.mpi, tt.nodes, way), func(t *testing.T) {
				if tt.mpi == "pmix" {
					pmixOrSkip(t)
				}
				r := l.runAs(t, l.user, nil, l.userDir(t), argv...)
				want := fmt.Sprintf("size=%d sum=%d right=True shared=True\n", tt.tasks, tt.tasks*(tt.tasks+1)/2)
				if n := strings.Count(r.stdout, want); r.code != 0 || n != tt.tasks || strings.Contains(r.stderr, "user namespaces") {
					t.Errorf("%d tasks are right: %+v", n, r)
				}
			})
		}
	}
	l.clean(t)
}

// What PMIx's server shares with tasks is below slurmd's directory, of which containers have nothing else.
func TestPMIxDirectory(t *testing.T) {
	l := theLab(t)
	pmixOrSkip(t)
	const look = `ls -d "$PMIX_SERVER_TMPDIR"/pmix_dstor* && ls ` + "%s" + ` && touch "$PMIX_SERVER_TMPDIR/mine"`
	srun := []string{"--mpi=pmix", "--nodes=2", "--ntasks=2"}
	// The cluster's directory is in /tmp, which is the host's otherwise.
	for way, argv := range l.contained(l.image, srun, []string{"mounts=umount:/tmp"}, "sh", "-c", fmt.Sprintf(look, l.dir)) {
		r := l.runAs(t, l.user, nil, l.userDir(t), argv...)
		if r.code != 0 || strings.Count(r.stdout, "pmix_dstor") < 2 || strings.Contains(r.stdout, "slurm.conf") {
			t.Errorf("%s: %+v", way, r)
		}
	}
	// A directory that is not what Slurm makes is none of the container's.
	dir := l.userDir(t)
	if err := os.WriteFile(filepath.Join(dir, "secret"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for way, argv := range l.contained(l.image, []string{"--ntasks=1"}, []string{"mounts=umount:/tmp"}, "ls", dir) {
		if r := l.runAs(t, l.user, []string{"PMIX_SERVER_TMPDIR=" + dir}, dir, argv...); r.code == 0 {
			t.Errorf("%s: %+v", way, r)
		}
	}
}

// Variables that programs find each other by arrive as they are, and what srun sets for each task with them.
func TestRendezvousVariables(t *testing.T) {
	l := theLab(t)
	env := []string{"MASTER_ADDR=n1", "MASTER_PORT=29500", "NCCL_DEBUG=INFO", "NCCL_SOCKET_IFNAME=^lo,docker", "UCX_TLS=all", "FI_PROVIDER=a b", "EMPTY="}
	const show = `env | grep -E '^(MASTER_|NCCL_|UCX_|FI_|EMPTY)' | sort | tr '\n' ';'; echo $SLURM_PROCID $PMI_RANK $PMI_SIZE $([ -S /proc/self/fd/$PMI_FD ] && echo socket)`
	for way, argv := range l.contained(l.image, []string{"--mpi=pmi2", "--nodes=2", "--ntasks=4", "--label"}, nil, "sh", "-c", show) {
		r := l.runAs(t, l.user, env, l.userDir(t), argv...)
		for rank := range 4 {
			want := fmt.Sprintf("%d: EMPTY=;FI_PROVIDER=a b;MASTER_ADDR=n1;MASTER_PORT=29500;NCCL_DEBUG=INFO;NCCL_SOCKET_IFNAME=^lo,docker;UCX_TLS=all;%[1]d %[1]d 4 socket\n", rank)
			if !strings.Contains(r.stdout, want) {
				t.Errorf("%s: no %q in %+v", way, want, r)
			}
		}
	}
}
