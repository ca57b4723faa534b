package servicetest

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/internal/wire"
)

// talk is a connection by hand: it says what no client of ours says.
type talk struct {
	sock *net.UnixConn
	conn *wire.Conn
}

// answerBound is within what even the worst of clients gets its answer, or the end of the connection.
const answerBound = 20 * time.Second

// connect connects as u.
func (d *daemon) connect(u user) (*talk, error) {
	var sock *net.UnixConn
	var err error
	u.do(func() { sock, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: d.socket, Net: "unixpacket"}) })
	if err != nil {
		return nil, err
	}
	return &talk{sock, wire.NewConn(sock)}, nil
}

// greet connects as u and says hello.
func (d *daemon) greet(t *testing.T, u user) *talk {
	t.Helper()
	c, err := d.connect(u)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.sock.Close() })
	if w, err := c.hello("squire", noded.Version); err != nil || w.Error != "" {
		t.Fatalf("hello of user %v: %+v, %v", u, w, err)
	}
	return c
}

// hello greets with any magic and version.
func (c *talk) hello(magic string, version int) (noded.Welcome, error) {
	var w noded.Welcome
	_ = c.conn.SetDeadline(time.Now().Add(answerBound))
	err := c.conn.Send(&noded.Hello{Magic: magic, Version: version, Program: "by hand"})
	if err == nil {
		_, err = c.conn.Recv(&w)
	}
	return w, err
}

// ask makes a request. The files that come with the reply are the caller's.
func (c *talk) ask(r noded.Request, files ...*os.File) (noded.Reply, []*os.File, error) {
	var reply noded.Reply
	_ = c.conn.SetDeadline(time.Now().Add(answerBound))
	if err := c.conn.Send(&r, files...); err != nil {
		return reply, nil, err
	}
	got, err := c.conn.Recv(&reply)
	if err == nil && reply.More {
		reply = noded.Reply{}
		_, err = c.conn.Recv(&reply)
	}
	return reply, got, err
}

// wantRefused checks that a request is answered with a refusal that is not the service's own trouble, or by the end of the
// connection, in time.
func (c *talk) wantRefused(t *testing.T, what string, r noded.Request, files ...*os.File) {
	t.Helper()
	reply, got, err := c.ask(r, files...)
	for _, f := range got {
		f.Close()
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		t.Errorf("%s: no answer in %s", what, answerBound)
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET):
		t.Errorf("%s: %v", what, err)
	case err == nil && reply.Code == noded.OK:
		t.Errorf("%s: is granted", what)
	case err == nil && reply.Error == "":
		t.Errorf("%s: refused without a word: %+v", what, reply)
	case err == nil && reply.Code == noded.Failed:
		t.Errorf("%s: the service blames itself: %+v", what, reply)
	case len(got) > 0:
		t.Errorf("%s: refused, with %d files", what, len(got))
	}
}

// send sends bytes with descriptors as they are.
func (c *talk) send(b []byte, fds ...int) error {
	_ = c.sock.SetDeadline(time.Now().Add(answerBound))
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := c.sock.WriteMsgUnix(b, oob, nil)
	return err
}

// openAs opens a file as u.
func openAs(t *testing.T, u user, path string, flags int) *os.File {
	t.Helper()
	var f *os.File
	var err error
	u.do(func() { f, err = os.OpenFile(path, flags, 0) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// squashed asks for what "squire run" asks for.
func squashed() noded.Request {
	return noded.Request{Do: noded.VerbMount, Image: "by-hand.sqsh", View: noded.View{Squash: true, Restrict: true}}
}

// fileCount returns how many descriptors the keeper has.
func (d *daemon) fileCount(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/" + itoa(d.report(t).PID) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
