package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/trace"
)

// tracer runs squire with traces, in a cache directory of its own.
type tracer struct {
	*lab
	who   user
	cache string
}

func newTracer(t *testing.T, l *lab, who user) *tracer {
	cache := l.mkdir(t, who)
	t.Cleanup(func() { os.RemoveAll(filepath.Join(cache, "traces")) })
	return &tracer{l, who, cache}
}

// argv is a command line of squire's.
func (tr *tracer) argv(args ...string) []string {
	return append([]string{"env", "-u", "SQUIRE_TRACE", "SQUIRE_CACHE_DIR=" + tr.cache, tr.squire}, args...)
}

// python runs the script in an image, and returns how many blocks were replayed and recorded.
func (tr *tracer) python(t *testing.T, flags ...string) (replayed, recorded int) {
	t.Helper()
	return tr.pythonIn(t, tr.images["zstd"], flags...)
}

func (tr *tracer) pythonIn(t *testing.T, image string, flags ...string) (replayed, recorded int) {
	t.Helper()
	args := append(append([]string{"run", "--stats"}, flags...), image, "--", "python3", "-c", script)
	r := tr.run(t, tr.who, tr.argv(args...)...)
	if r.status != 0 || r.stdout != "10\n" || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("status %d, stdout %q, stderr %q", r.status, r.stdout, r.stderr)
	}
	return blocksIn(r.stderr, "replayed"), blocksIn(r.stderr, "recorded")
}

// blocksIn finds the number of blocks in what --stats says.
func blocksIn(stderr, verb string) int {
	m := regexp.MustCompile(`, a trace of (\d+) blocks ` + verb).FindStringSubmatch(stderr)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// files lists what is in the directory of traces, by size.
func (tr *tracer) files(t *testing.T) (sizes []int64) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(tr.cache, "traces"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, fi.Size())
	}
	return sizes
}

// traceList is the part of "squire trace show --json" that the tests look at.
type traceList struct {
	Blocks, Unknown int
	Files           []struct{ Path string }
}

func (tr *tracer) show(t *testing.T, args ...string) (l traceList) {
	t.Helper()
	r := tr.run(t, tr.who, tr.argv(append([]string{"trace", "show", "--json"}, args...)...)...)
	if err := json.Unmarshal([]byte(r.stdout), &l); err != nil || r.status != 0 || r.stderr != "" {
		t.Fatalf("%v: %+v", err, r)
	}
	return l
}

func (l *traceList) index(path string) int {
	return slices.IndexFunc(l.Files, func(f struct{ Path string }) bool { return strings.HasPrefix(f.Path, path) })
}

func testTrace(t *testing.T, l *lab, who user) {
	t.Run("life", func(t *testing.T) { testTraceLife(t, newTracer(t, l, who)) })
	t.Run("grows", func(t *testing.T) { testTraceGrows(t, newTracer(t, l, who)) })
	t.Run("off", func(t *testing.T) { testTraceOff(t, newTracer(t, l, who)) })
	t.Run("other image", func(t *testing.T) { testTraceOfOther(t, newTracer(t, l, who)) })
	t.Run("no place", func(t *testing.T) { testTraceNowhere(t, newTracer(t, l, who)) })
	t.Run("hostile", func(t *testing.T) { testTraceHostile(t, newTracer(t, l, who)) })
	t.Run("at once", func(t *testing.T) { testTraceAtOnce(t, newTracer(t, l, who)) })
	t.Run("killed", func(t *testing.T) { testTraceKilled(t, newTracer(t, l, who)) })
	l.wantNothingLeft(t)
}

// testTraceLife wants the first run to record what it reads, and the next to use it and leave it alone.
func testTraceLife(t *testing.T, tr *tracer) {
	replayed, recorded := tr.python(t)
	if replayed != 0 || recorded < 100 {
		t.Fatalf("first run: %d replayed, %d recorded", replayed, recorded)
	}
	list := tr.show(t, tr.images["zstd"])
	python, libc, numpy := list.index("usr/bin/python3"), list.index("usr/lib/x86_64-linux-gnu/libc.so"), list.index("usr/lib/python3/dist-packages/numpy/")
	if list.Blocks != recorded || list.Unknown != 0 || python < 0 || libc < python || numpy < libc {
		t.Errorf("%d blocks were recorded, %d of them unknown; python is file %d, libc %d, numpy %d", list.Blocks, list.Unknown, python, libc, numpy)
	}
	before := tr.files(t)
	if replayed, again := tr.python(t); replayed != recorded || again != 0 {
		t.Errorf("second run: %d replayed, %d recorded, want %d and none", replayed, again, recorded)
	}
	if after := tr.files(t); !slices.Equal(before, after) || len(after) != 1 {
		t.Errorf("files of %v bytes became %v", before, after)
	}
	if r := tr.run(t, tr.who, tr.argv("trace", "rm", tr.images["zstd"])...); r != (result{}) || len(tr.files(t)) != 0 {
		t.Errorf("rm: %+v", r)
	}
}

// testTraceGrows wants a command of which the trace has little to add what it reads, and one that reads little to keep
// nothing.
func testTraceGrows(t *testing.T, tr *tracer) {
	small := func(command ...string) result {
		return tr.run(t, tr.who, tr.argv(append([]string{"run", "--stats", tr.images["zstd"], "--"}, command...)...)...)
	}
	if r := small("true"); r.status != 0 || strings.Contains(r.stderr, "trace") || !slices.Equal(tr.files(t), []int64{0}) {
		t.Errorf("true: %+v; files of %v bytes", r, tr.files(t))
	}
	r := small("python3", "-c", "pass")
	first := blocksIn(r.stderr, "recorded")
	replayed, second := tr.python(t)
	if first == 0 || replayed != first || second <= 2*first {
		t.Errorf("recorded %d, then replayed %d and recorded %d", first, replayed, second)
	}
	if r = small("true"); blocksIn(r.stderr, "replayed") != second || blocksIn(r.stderr, "recorded") != 0 {
		t.Errorf("true: %+v", r)
	}
}

func testTraceOff(t *testing.T, tr *tracer) {
	if replayed, recorded := tr.python(t, "--no-trace"); replayed+recorded != 0 || len(tr.files(t)) != 0 {
		t.Errorf("--no-trace: %d replayed, %d recorded, files of %v bytes", replayed, recorded, tr.files(t))
	}
	r := tr.run(t, tr.who, "env", "SQUIRE_TRACE=maybe", tr.squire, "run", tr.images["zstd"], "true")
	wantError(t, tr.lab, r, statusFailed, "SQUIRE_TRACE=maybe")
}

// testTraceOfOther wants a trace beside an image to be used, and not to count any longer when another image has the
// name.
func testTraceOfOther(t *testing.T, tr *tracer) {
	dir := tr.mkdir(t, tr.who)
	t.Cleanup(func() { os.RemoveAll(dir) })
	image := filepath.Join(dir, "image.sqsh")
	if err := testenv.LinkOrCopy(tr.images["zstd"], image); err != nil {
		t.Fatal(err)
	}
	r := tr.run(t, tr.who, tr.argv("trace", "record", image, "--", "python3", "-c", script)...)
	if r.status != 0 || r.stdout != "10\n" || !strings.Contains(r.stderr, "squire: recorded ") || !strings.Contains(r.stderr, image+".trace") {
		t.Fatalf("record: %+v", r)
	}
	recorded := tr.show(t, image).Blocks
	if replayed, again := tr.pythonIn(t, image); replayed != recorded || again != 0 {
		t.Errorf("%d replayed of %d, %d recorded", replayed, recorded, again)
	}
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	if err := testenv.LinkOrCopy(tr.images["gzip"], image); err != nil {
		t.Fatal(err)
	}
	if replayed, again := tr.pythonIn(t, image); replayed != 0 || again == 0 {
		t.Errorf("another image: %d replayed, %d recorded", replayed, again)
	}
	r = tr.run(t, tr.who, tr.argv("trace", "apply", image, image+".trace")...)
	wantError(t, tr.lab, r, statusFailed, "trace of another image")
	// The command's own status comes through, and a trace with it; none if it could not be run.
	r = tr.run(t, tr.who, tr.argv("trace", "record", "-o", dir+"/x", image, "sh", "-c", "exit 3")...)
	if r.status != 3 || tr.show(t, image, dir+"/x").Blocks == 0 {
		t.Errorf("record, status 3: %+v", r)
	}
	// Not in place of one that is there.
	for command, status := range map[string]int{"exit 3": 3, "kill -9 $$": 128 + 9} {
		r = tr.run(t, tr.who, tr.argv("trace", "record", "-o", dir+"/x", image, "sh", "-c", command)...)
		if r.status != status || !strings.Contains(r.stderr, "the older trace is kept, in "+dir+"/x\n") {
			t.Errorf("record, %s: %+v", command, r)
		}
	}
	r = tr.run(t, tr.who, tr.argv("trace", "record", "-o", dir+"/y", image, "nosuch")...)
	wantError(t, tr.lab, r, statusNotFound, "nosuch")
	if names, _ := filepath.Glob(dir + "/*"); len(names) != 3 {
		t.Errorf("files are %v", names)
	}
}

// testTraceNowhere wants images to work all the same, without a word, where traces cannot be kept.
func testTraceNowhere(t *testing.T, tr *tracer) {
	cache := tr.cache
	for _, tr.cache = range []string{"/dev/null/cache", "/nonexistent/deep/cache", "/proc/self"} {
		if replayed, recorded := tr.python(t); replayed+recorded != 0 {
			t.Errorf("%s: %d replayed, %d recorded", tr.cache, replayed, recorded)
		}
	}
	tr.cache = cache
	if err := os.Chmod(cache, 0o777); err != nil {
		t.Fatal(err)
	}
	if replayed, recorded := tr.python(t); replayed+recorded != 0 {
		t.Errorf("others can write: %d replayed, %d recorded", replayed, recorded)
	}
	if tr.who.cred == nil {
		return // modes do not keep root from writing
	}
	if err := os.Chmod(cache, 0o555); err != nil {
		t.Fatal(err)
	}
	if replayed, recorded := tr.python(t); replayed+recorded != 0 || len(tr.files(t)) != 0 {
		t.Errorf("read-only: %d replayed, %d recorded", replayed, recorded)
	}
}

// testTraceHostile wants anything in place of a trace to be recorded over, or left alone.
func testTraceHostile(t *testing.T, tr *tracer) {
	if _, recorded := tr.python(t); recorded == 0 {
		t.Fatal("nothing was recorded")
	}
	names, _ := filepath.Glob(tr.cache + "/traces/*")
	if len(names) != 1 {
		t.Fatalf("traces are %v", names)
	}
	whole, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	flipped := slices.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	for name, b := range map[string][]byte{
		"cut off": whole[:len(whole)-1], "flipped": flipped, "longer": append(slices.Clone(whole), 0),
		"text": []byte("no trace\n"), "huge": make([]byte, 4<<20),
	} {
		if err = os.WriteFile(names[0], b, 0); err != nil {
			t.Fatal(err)
		}
		if replayed, recorded := tr.python(t); replayed != 0 || recorded == 0 {
			t.Errorf("%s: %d replayed, %d recorded", name, replayed, recorded)
		}
	}
	wrong, err := trace.Decode(whole)
	if err != nil {
		t.Fatal(err)
	}
	// Every reference that the table may have, hardly one of a file, and blocks that no file has.
	for wrong.Touches = nil; len(wrong.Touches) < trace.MaxTouches; {
		n := len(wrong.Touches)
		wrong.Touches = append(wrong.Touches, trace.Touch{Ref: sqfs.InodeRef(n/4096<<16 | n*2%8192), Block: uint32(n * n)})
	}
	if err := os.WriteFile(names[0], wrong.Encode(), 0); err != nil {
		t.Fatal(err)
	}
	if replayed, recorded := tr.python(t); replayed != trace.MaxTouches || recorded != 0 {
		t.Errorf("nonsense: %d replayed, %d recorded", replayed, recorded)
	}
	precious := tr.file(t, "precious", []byte("precious"))
	if err := os.Remove(names[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(precious, names[0]); err != nil {
		t.Fatal(err)
	}
	if replayed, recorded := tr.python(t); replayed+recorded != 0 {
		t.Errorf("a link: %d replayed, %d recorded", replayed, recorded)
	}
	if b, err := os.ReadFile(precious); err != nil || string(b) != "precious" {
		t.Errorf("%v: the file behind a link is %q", err, b)
	}
}

// hold runs a command in the image that reads, and then waits until the function it returns is called.
func (tr *tracer) hold(t *testing.T) (release func() (stderr string)) {
	t.Helper()
	dir := tr.mkdir(t, tr.who)
	cmd, stderr := tr.start(t, tr.who, dir, tr.argv("run", "--stats", tr.images["zstd"], "--",
		"sh", "-c", "python3 -c '"+script+"'; touch "+dir+"/ready; while [ -e "+dir+"/ready ]; do sleep 0.05; done")...)
	return func() string {
		os.Remove(filepath.Join(dir, "ready"))
		_ = cmd.Wait()
		return stderr.String()
	}
}

// testTraceAtOnce wants one of two runs to record, and the other not to mind.
func testTraceAtOnce(t *testing.T, tr *tracer) {
	release := tr.hold(t)
	if replayed, recorded := tr.python(t); replayed+recorded != 0 {
		t.Errorf("beside a recording: %d replayed, %d recorded", replayed, recorded)
	}
	if stderr := release(); blocksIn(stderr, "recorded") == 0 {
		t.Errorf("nothing was recorded; stderr: %s", stderr)
	}
	if replayed, _ := tr.python(t); replayed == 0 {
		t.Error("nothing was replayed")
	}
}

// testTraceKilled wants the trace of a server that is killed to be there if its start was over, and else no trace to be
// taken for one.
func testTraceKilled(t *testing.T, tr *tracer) {
	release := tr.hold(t)
	server := tr.server(t)
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	release()
	// It has the lock on the trace for as long as one of its threads waits for a page.
	if !eventually(bound, func() bool { return syscall.Kill(server, 0) != nil }) {
		t.Fatal("the killed server does not end")
	}
	if sizes := tr.files(t); !slices.Equal(sizes, []int64{0}) {
		t.Errorf("killed at once: files of %v bytes", sizes)
	}
	release = tr.hold(t)
	// Its start is over 10 s after the last read, and on a busy machine that may be long after its beginning.
	if !eventually(2*bound, func() bool { return !slices.Equal(tr.files(t), []int64{0}) }) {
		t.Errorf("after two minutes there is no trace")
	}
	if err := syscall.Kill(tr.server(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	release()
	if replayed, _ := tr.python(t); replayed < 100 {
		t.Errorf("killed after its start: %d replayed", replayed)
	}
}

// testTraceOfMount wants squire mount to record, and to use it, except where an option says that it should not.
func testTraceOfMount(t *testing.T, l *lab, who user) {
	tr := newTracer(t, l, who)
	dir := l.mountPoint(t, who)
	use := func(options string) {
		t.Helper()
		if r := l.run(t, who, tr.argv("mount", "-o", options, l.images["zstd"], dir)...); r != (result{}) {
			t.Fatalf("mount: %+v", r)
		}
		if r := l.run(t, who, "sh", "-c", "cat $(ls -r "+dir+"/usr/lib/python3.11/*.py) >/dev/null"); r != (result{}) {
			t.Errorf("cat: %+v", r)
		}
		if r := l.run(t, who, l.squire, "umount", dir); r != (result{}) {
			t.Errorf("umount: %+v", r)
		}
		l.wantNothingLeft(t)
	}
	use("notrace")
	if sizes := tr.files(t); len(sizes) != 0 {
		t.Errorf("notrace: files of %v bytes", sizes)
	}
	use("ro")
	sizes := tr.files(t)
	if len(sizes) != 1 || sizes[0] == 0 {
		t.Fatalf("files of %v bytes", sizes)
	}
	list := tr.show(t, l.images["zstd"])
	if list.index("usr/lib/python3.11/") != 0 || list.Blocks < 64 {
		t.Errorf("%d blocks, the first of %+v", list.Blocks, list.Files[:1])
	}
	use("trace")
	if again := tr.files(t); !slices.Equal(again, sizes) {
		t.Errorf("files of %v bytes became %v", sizes, again)
	}
}
