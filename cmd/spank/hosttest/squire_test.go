package hosttest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is what the stand-in for squire finds itself to be.
type report struct {
	Status map[string]string // /proc/self/status
	Files  []string
	Env    []string
	Args   []string
	Score  string
	Order  json.RawMessage
}

// squire is the stand-in. What it does is in the variable FAKE: of its own environment when it checks, of the order's
// when it is a step process.
func squire(verb string) int {
	if verb == "check" {
		return check(os.Getenv("FAKE"))
	}
	if verb == "cleanup" {
		signal.Ignore(unix.SIGTERM)
		time.Sleep(time.Hour)
	}
	files := descriptors()
	text, err := io.ReadAll(os.Stdin)
	var order struct{ Env []string }
	if err == nil {
		err = json.Unmarshal(text, &order)
	}
	if err != nil {
		return 1
	}
	value := func(name string) string {
		for _, kv := range order.Env {
			if v, ok := strings.CutPrefix(kv, name+"="); ok {
				return v
			}
		}
		return ""
	}
	fake := value("FAKE")
	if fake == "report" {
		tell(value("REPORT"), files, text)
		fake = "good"
	}
	return step(fake)
}

func check(fake string) int {
	switch fake {
	case "meant":
		fmt.Print(`{"a":"b"}`)
	case "warns":
		fmt.Fprintln(os.Stderr, "careful")
	case "refuses":
		fmt.Fprint(os.Stderr, "one\ntwo\n")
		return 255
	case "dies":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
	return 0
}

// descriptors are those that a program has from whoever started it: the others are Go's, which come after main.
func descriptors() (open []string) {
	for fd := range 64 {
		link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err == nil && !strings.HasPrefix(link, "anon_inode:[event") && !strings.HasPrefix(link, "/sys/fs/cgroup") {
			open = append(open, fmt.Sprint(fd))
		}
	}
	return open
}

func tell(path string, files []string, order []byte) {
	r := report{Files: files, Env: os.Environ(), Args: os.Args[1:], Order: order, Status: map[string]string{}}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		name, text, _ := strings.Cut(line, ":")
		r.Status[name] = strings.TrimSpace(text)
	}
	score, _ := os.ReadFile("/proc/self/oom_score_adj")
	r.Score = strings.TrimSpace(string(score))
	text, _ := json.Marshal(r)
	_ = os.WriteFile(path, text, 0o644)
}

// answers are the answers to tasks.
func answers(fake string) string {
	head := func(sign, text string) string { return fmt.Sprintf("%s%08x%s", sign, len(text), text) }
	records := func(list ...string) string { return head("+", strings.Join(list, "\x00")+"\x00") }
	switch fake {
	case "short":
		return "+0000"
	case "length":
		return "+0000zz00a\x00"
	case "endless":
		return "+ffffffffa\x00"
	case "truncated":
		return "+00000100sA=b\x00"
	case "unknown":
		return records("z")
	case "namespace":
		return records("nuser")
	case "not-ns":
		return records("nuser")
	case "nameless":
		return records("snovalue")
	case "directory":
		return records("w/no/such")
	case "filter":
		return records("f00xx")
	case "program":
		return records("fffff0000ffffffff")
	case "refuses":
		return head("-", "no such image")
	case "refuses-silently":
		return head("-", "")
	case "colours":
		return head("-", "\x1b[31mred\x7f\ntwo")
	case "supervises", "supervises-not", "objects":
		return records("k", "sA=b")
	}
	if fake == "limits" { // the program allows all system calls: SECCOMP_RET_ALLOW
		return records("c0", "f000600007fff0000")
	}
	return records("sSET=a=b c", "uGONE", "w/usr")
}

// step is the step process.
func step(fake string) int {
	const socket = 3
	if fake == "no-order" {
		return 1
	}
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*3))
	for {
		n, oobn, _, _, err := unix.Recvmsg(socket, b, oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil || n == 0 {
			return 0
		}
		if oobn == 0 {
			if !end(socket, fake) {
				select {} // forever: a signal ends it
			}
			continue
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return 1
		}
		files, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(files) != 3 {
			return 1
		}
		unix.Close(files[1])
		unix.Close(files[2])
		if fake == "dies" {
			return 0
		}
		answer(files[0], fake)
		if fake == "dies-late" || fake == "dies-later" || fake == "supervises-not" {
			return 0
		}
	}
}

// end does what is to be done at the end; false: it hangs, for longer than the plugin waits.
func end(socket int, fake string) bool {
	switch fake {
	case "stays":
		time.AfterFunc(3*time.Second, func() { os.Exit(0) })
		return false
	case "chatters":
		for range 100 {
			_ = unix.Sendmsg(socket, []byte("+"), nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		}
		time.AfterFunc(3*time.Second, func() { os.Exit(0) })
		return false
	case "complains":
		_ = unix.Sendmsg(socket, []byte("-it went wrong"), nil, nil, unix.MSG_NOSIGNAL)
	default:
		_ = unix.Sendmsg(socket, []byte("+"), nil, nil, unix.MSG_NOSIGNAL)
	}
	return true
}

func answer(to int, fake string) {
	defer unix.Close(to)
	text := []byte(answers(fake))
	var rights []byte
	switch fake {
	case "dies-late":
		return
	case "many":
		rights = unix.UnixRights(make([]int, 20)...)
	case "not-ns":
		rights = unix.UnixRights(1)
	}
	_ = unix.Sendmsg(to, text, rights, nil, unix.MSG_NOSIGNAL)
	if fake == "supervises" || fake == "objects" {
		status := make([]byte, 32)
		_, _ = unix.Read(to, status)
		if fake == "objects" {
			_, _ = unix.Write(to, []byte("-not saved"))
		} else {
			_, _ = unix.Write(to, []byte("+"))
		}
	}
}
