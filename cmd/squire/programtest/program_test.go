package programtest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// Python with numpy: processes that share memory and semaphores in /dev/shm, the host's and one of the container's own.
func TestPython(t *testing.T) {
	each(t, []string{alone, served}, func(t *testing.T, w *who) {
		want := "fork 200 45 queue [0, 0, 0, 0]\nspawn 200 45 queue [0, 0, 0, 0]\n4 b'IN\\n' 3\n"
		w.want(t, want, nil, "python3", w.file("python.py"))
		if w.name == alone {
			w.want(t, want, []string{"--unshare", "pid,ipc,net"}, "python3", w.file("python.py"))
		}
	})
}

// A compiler, make, git in the root file system, in memory and in a layer that is kept.
func TestCompile(t *testing.T) {
	each(t, []string{alone, served}, func(t *testing.T, w *who) {
		flags := []string{"--writable"}
		if w.name == served {
			flags = []string{"--name", "build"}
		}
		w.want(t, "program 21\nlinks 2\nprogram 21\nprogram 21\n7\n", flags, "sh", w.file("compile.sh"))
		if w.name == served {
			if r := w.squire(t, "run", "--name", "build", "--", "/srv/build/program"); r.stdout != "program 21\n" {
				t.Errorf("in the kept layer: %+v", r)
			}
		}
	})
}

// Trees of links, directories that are renamed, pip, tar and rsync.
func TestLinks(t *testing.T) {
	each(t, []string{alone, served}, func(t *testing.T, w *who) {
		w.want(t, "hard 2\nsymbolic 20\nhard 1\n"+
			"image 2\nchanged\none inode, four names\n"+
			"Errno 18\n/etc/apt2/apt.conf.d\nTrue\nmodule 1\nmodule 2\ntar\nrsync\n", []string{"--writable"}, "sh", w.file("links.sh"))
	})
}

// apt and dpkg, and what administrators do, for who looks like root with one user id: owners are not kept, and there are
// no devices; all else is as for root.
func TestPackages(t *testing.T) {
	const same = `squire-app install ok installed
squire-base install ok installed
/usr/lib/base/set-id 4750 app:adm
/usr/lib/base/hard 4750 app:adm
/var/lib/app 2770 app:app
/var/lib/app/by-su 644 app:app
/var/log/app 750 app:adm
/srv/app/secret 600 app:app
removed
/home/alice alice
su /home/alice alice
tar 33:1234
rsync 65534:4000000000
install 2755 0:8
/srv/mail cap_net_raw=ep
`
	one := strings.NewReplacer("app:app", "root:root", "app:adm", "root:root", "alice\n", "root\n", "33:1234", "0:0", "65534:4000000000", "0:0", "0:8", "0:0")
	each(t, []string{alone, served, asRoot}, func(t *testing.T, w *who) {
		flags, want := []string{"--writable", "--remap-root"}, same
		if w.name == served {
			flags = []string{"--name", "packages", "--remap-root"}
		}
		if w.uid != 0 {
			want = one.Replace(same) + "not permitted\n"
		}
		w.want(t, want, flags, "bash", w.file("packages.sh"))
	})
}

// strace and gdb, with the host's processes and with those of the container alone.
func TestTracers(t *testing.T) {
	each(t, []string{alone, served, asRoot}, func(t *testing.T, w *who) {
		sets := [][]string{nil}
		if w.name == alone {
			sets = [][]string{nil, {"--unshare", "pid"}, {"--remap-root"}}
		}
		for _, flags := range sets {
			w.want(t, "child 49\nstrace 3 1 1\n1\n"+
				"#0  square (x=7) at trace.c:5\n#1  main () at trace.c:10\n$1 = 14\n$2 = 81\nchild 49\n[Inferior 2 exited normally]\n1\n",
				flags, "sh", w.file("trace.sh"), w.file("trace.c"))
		}
	})
}

// Ranks that mpirun starts in one container.
func TestMPI(t *testing.T) {
	each(t, []string{alone, served}, func(t *testing.T, w *who) {
		program := w.l.mpiProgram(t)
		for _, flags := range [][]string{nil, {"--unshare", "pid,ipc,net"}} {
			for library, mpirun := range map[string]string{"openmpi": "mpirun.openmpi --oversubscribe", "mpich": "mpiexec.mpich"} {
				argv := append(strings.Fields(mpirun), "-n", "4", "python3", program, library)
				r := w.run(t, flags, argv...)
				if r.status != 0 || strings.Count(r.stdout, "size=4 sum=10 right=True shared=True\n") != 4 {
					t.Errorf("%q with %q: %+v", argv, flags, r)
				}
			}
		}
	})
}

// mpiProgram is the program of Slurm's tests, which is to be read by all.
func (l *lab) mpiProgram(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../spank/slurmtest/testdata/mpi.py")
	path := l.dir + "/mpi.py"
	if err == nil {
		err = os.WriteFile(path, text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Tasks that squire exec adds to a container share its memory, and read each other's.
func TestPeers(t *testing.T) {
	each(t, []string{alone, served}, func(t *testing.T, w *who) {
		for _, flags := range [][]string{nil, {"--unshare", "ipc"}} {
			dir, err := os.MkdirTemp(w.home, "peers")
			if err == nil {
				err = os.Chown(dir, int(w.uid), int(w.uid))
			}
			if err != nil {
				t.Fatal(err)
			}
			const size = 4
			first := w.command(t, append(append([]string{"run", "--name", "peers"}, flags...), w.l.image, "--", "python3", w.file("peers.py"), "0", fmt.Sprint(size), dir)...)
			out := make([]string, size)
			var all sync.WaitGroup
			start := func(i int, cmd *exec.Cmd) {
				all.Go(func() {
					b, err := cmd.CombinedOutput()
					if out[i] = string(b); err != nil {
						t.Errorf("task %d: %v", i, err)
					}
				})
			}
			start(0, first)
			if !eventually(func() bool { _, err := os.Stat(dir + "/0"); return err == nil }) {
				t.Fatal("the first does not start")
			}
			for i := 1; i < size; i++ {
				start(i, w.command(t, "exec", "peers", "--", "python3", w.file("peers.py"), fmt.Sprint(i), fmt.Sprint(size), dir))
			}
			all.Wait()
			for i := range out {
				if want := fmt.Sprintf("task %d 10\n", (i+1)%size); out[i] != want {
					t.Errorf("task %d with %q: %q, want %q", i, flags, out[i], want)
				}
			}
			if r := w.squire(t, "container", "rm", "peers"); r.status != 0 {
				t.Errorf("%+v", r)
			}
		}
	})
}

// Programs that ask who they run as, of whom there is nothing in the image.
func TestAccount(t *testing.T) {
	each(t, []string{alone, served}, func(t *testing.T, w *who) {
		w.want(t, "tester tester\n"+w.home+"\nuser tester\n", nil, "sh", "-c", `echo $(id -un; id -gn); python3 -c 'import os.path; print(os.path.expanduser("~tester"))'
			ssh -T -G -F none somewhere | grep "^user "`)
		w.want(t, "root\n", []string{"--remap-root"}, "whoami")
	})
}
