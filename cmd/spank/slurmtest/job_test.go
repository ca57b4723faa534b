package slurmtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	jobNodes     = 4
	tasksPerNode = 8
)

// trainingJob is a job as its user has written it, with {image}, {datasets}, {checkpoints} for the paths.
const trainingJob = `#!/bin/bash
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=12
#SBATCH --time=48:00:00
#SBATCH --container-image={image}
#SBATCH --container-mounts={datasets}:/data:ro,{checkpoints}:/results:rw
#SBATCH --container-writable
export NCCL_DEBUG=INFO
export NCCL_IB_DISABLE=0
export MASTER_ADDR=$(scontrol show hostname $SLURM_NODELIST | head -n 1)
export MASTER_PORT=29500
srun python train.py --model gpt3-175b --data-path /data/pile --checkpoint-path /results --tensor-parallel 8 --pipeline-parallel 4
`

// trained is what testdata/train.py has seen.
type trained struct {
	Rank, Size, Local, Parallel int
	Node, Model, CWD, Root      string
	UID, GID                    uint32
	Marker, Image, CPUs         string
	Device, Namespace           uint64
	Writable                    bool
	Data, DataRefused           string
	Environment, Status         map[string]string
	GPUs, Usable                []int
	Sum                         float64
	Neighbours                  []int
}

// A cluster's file system, with what the job reads, and a place for what it writes.
func (l *lab) lustre(t *testing.T) (dir string) {
	t.Helper()
	dir = l.userDir(t)
	for _, name := range []string{"datasets", "checkpoints"} {
		at := filepath.Join(dir, name)
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(at, int(l.user.uid), int(l.user.gid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "datasets", "pile"), []byte("the pile\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The job as it stands: every one of its 32 tasks says what it has seen.
func TestTrainingJob(t *testing.T) {
	l := theLab(t)
	l.plugstack(t, "batch=host")
	lustre := l.lustre(t)
	checkpoints := filepath.Join(lustre, "checkpoints")
	script := strings.NewReplacer("{image}", l.rich(), "{datasets}", filepath.Join(lustre, "datasets"), "{checkpoints}", checkpoints).Replace(trainingJob)
	out, code := l.batch(t, l.userDir(t), script)
	if code != 0 {
		t.Fatalf("status %d\n%s", code, out)
	}
	var all []trained
	for rank := range jobNodes * tasksPerNode {
		text, err := os.ReadFile(filepath.Join(checkpoints, fmt.Sprintf("rank-%d.json", rank)))
		var seen trained
		if err == nil {
			err = json.Unmarshal(text, &seen)
		}
		if err != nil {
			t.Errorf("rank %d has left nothing: %v", rank, err)
			continue
		}
		if _, err = os.Stat(filepath.Join(checkpoints, fmt.Sprintf("weights-%d.npy", rank))); err != nil {
			t.Error(err)
		}
		all = append(all, seen)
	}
	for _, seen := range all {
		l.checkTrained(t, &seen)
		wantEqual(t, seen.Rank, "root", seen.Root, "overlay")
		wantEqual(t, seen.Rank, "writable root", seen.Writable, true)
		wantEqual(t, seen.Rank, "new file in read-only data", seen.DataRefused, "EROFS")
		wantEqual(t, seen.Rank, "model", seen.Model, "gpt3-175b")
		wantEqual(t, seen.Rank, "CPUs", seen.CPUs, "12")
		wantEqual(t, seen.Rank, "its only GPU", len(seen.GPUs), 1)
		wantEqual(t, seen.Rank, "sum of all ranks", seen.Sum, squares(seen.Size))
		for name, value := range map[string]string{"NCCL_DEBUG": "INFO", "NCCL_IB_DISABLE": "0", "MASTER_PORT": "29500", "MASTER_ADDR": "n1"} {
			wantEqual(t, seen.Rank, name, seen.Environment[name], value)
		}
	}
	l.checkNodes(t, all, true)
	if n := len(l.images(t)); n > 1 {
		t.Errorf("the image was mounted %d times", n)
	}
}

// squares is the sum that the ranks make: of their squares.
func squares(size int) (sum float64) {
	for rank := range size {
		sum += math.Pow(float64(rank), 2)
	}
	return sum
}

func wantEqual[T comparable](t *testing.T, rank int, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("rank %d: %s: %v, want %v", rank, what, got, want)
	}
}

// checkTrained is what holds for every task of whatever step.
func (l *lab) checkTrained(t *testing.T, seen *trained) {
	t.Helper()
	wantEqual(t, seen.Rank, "world size", seen.Size, jobNodes*tasksPerNode)
	wantEqual(t, seen.Rank, "user", seen.UID, l.user.uid)
	wantEqual(t, seen.Rank, "group", seen.GID, l.user.gid)
	wantEqual(t, seen.Rank, "directory", seen.CWD, "/workspace")
	wantEqual(t, seen.Rank, "file of the image", seen.Marker, "rich\n")
	wantEqual(t, seen.Rank, "variable of the image", seen.Image, "of the image")
	wantEqual(t, seen.Rank, "data", seen.Data, "the pile\n")
	wantEqual(t, seen.Rank, "no_new_privs", seen.Status["NoNewPrivs"], "1")
	wantEqual(t, seen.Rank, "capabilities", seen.Status["CapEff"], "0000000000000000")
	wantEqual(t, seen.Rank, "bounding set", seen.Status["CapBnd"], "0000000000000000")
}

// checkNodes looks at the tasks of each node together: ranks, GPUs, and what they share.
func (l *lab) checkNodes(t *testing.T, all []trained, gpus bool) {
	t.Helper()
	nodes := make(map[string][]trained)
	ranks := make(map[int]bool)
	for _, seen := range all {
		nodes[seen.Node] = append(nodes[seen.Node], seen)
		ranks[seen.Rank] = true
	}
	if len(ranks) != jobNodes*tasksPerNode || len(nodes) != jobNodes {
		t.Errorf("%d ranks on %q", len(ranks), slices.Sorted(maps.Keys(nodes)))
	}
	for node, tasks := range nodes {
		locals, devices, minors := make(map[int]bool), make(map[uint64]bool), make(map[int]bool)
		var here []int
		for _, seen := range tasks {
			locals[seen.Local], devices[seen.Device] = true, true
			here = append(here, seen.Rank)
			for _, minor := range seen.GPUs {
				minors[minor] = true
			}
		}
		slices.Sort(here)
		if len(locals) != tasksPerNode {
			t.Errorf("%s: local ids %v", node, slices.Sorted(maps.Keys(locals)))
		}
		if len(devices) != 1 {
			t.Errorf("%s: the image is there %d times", node, len(devices))
		}
		if gpus && len(minors) != tasksPerNode {
			t.Errorf("%s: its tasks have %v", node, slices.Sorted(maps.Keys(minors)))
		}
		for _, seen := range tasks {
			if seen.Writable && seen.Sum > 0 && !slices.Equal(seen.Neighbours, here) {
				t.Errorf("rank %d shares its root with %v, want %v", seen.Rank, seen.Neighbours, here)
			}
		}
	}
}

// The same program by the options of srun alone, on a read-only root.
func TestTrainingStep(t *testing.T) {
	l := theLab(t)
	lustre := l.lustre(t)
	r := l.runAs(t, l.user, []string{"SITE_VARIABLE=exported"}, l.userDir(t), "srun", "--nodes=4", "--ntasks-per-node=8",
		"--container-image="+l.rich(), "--container-mounts="+lustre+":/data", "python", "train.py")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	var all []trained
	for line := range strings.Lines(r.stdout) {
		var seen trained
		if err := json.Unmarshal([]byte(line), &seen); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		l.checkTrained(t, &seen)
		wantEqual(t, seen.Rank, "writable root", seen.Writable, false)
		wantEqual(t, seen.Rank, "new file in data", seen.DataRefused, "")
		wantEqual(t, seen.Rank, "variable of the user", seen.Environment["SITE_VARIABLE"], "exported")
		all = append(all, seen)
	}
	l.checkNodes(t, all, false)
}

// All tasks of a step share one mount of the image, and so do all steps and jobs: one file system has one copy of a file
// in the page cache, whatever is mounted over it. The nodes of this cluster have one service.
func TestOneMount(t *testing.T) {
	l := theLab(t)
	eventually(t, "nobody uses an image any more", func() bool { return len(l.images(t)) == 0 })
	a := l.allocate(t, "-N4", "--ntasks-per-node=8")
	a.hold(t, "-N4 -n32 --container-image={image}", "cat /usr/lib/x86_64-linux-gnu/libc.so.6 >/dev/null")
	used := func() (references int, read uint64) {
		images := l.images(t)
		if len(images) != 1 || images[0].State != "served" {
			t.Fatalf("the service has %+v", images)
		}
		return images[0].References, images[0].Read
	}
	var references int
	var read uint64
	eventually(t, "32 tasks on 4 nodes refer to the image 4 times", func() bool { references, read = used(); return references == jobNodes })
	b := l.allocate(t, "-N1", "-n2")
	b.hold(t, "-n2 --container-image={image} --container-writable", "cat /usr/lib/x86_64-linux-gnu/libc.so.6 >/dev/null")
	references, again := used()
	if references != jobNodes+1 {
		t.Errorf("with one step more there are %d references", references)
	}
	// What its tasks start and read is there, but for what they alone do.
	if again-read > read/10 {
		t.Errorf("the second job read %d bytes of the image more, after %d", again-read, read)
	}
}

// Tasks of different nodes find each other through Slurm's PMI-2, by a socket that each inherits.
func TestPMI2(t *testing.T) {
	l := theLab(t)
	r := l.runAs(t, l.user, nil, l.userDir(t), "srun", "--nodes=4", "--ntasks-per-node=2", "--mpi=pmi2", "--container-image="+l.rich(),
		"python", "pmi2.py")
	if n := strings.Count(r.stdout, "size=8 nodes=4 sum=140\n"); r.code != 0 || n != 8 {
		t.Errorf("%+v", r)
	}
}
