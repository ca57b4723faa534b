package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/fusefs/record"
	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/signed"
)

// image is one that is being opened, open, or served.
type image struct {
	Image
	file   *os.File // closed by whom it is opened, until that is done, and then by whoever drops it
	list   *os.File // of the hashes of a signed one, until it is opened; nil of others
	traces []*os.File
	steady *fusefs.Steady
	source *fusefs.Source
	sqfs   *sqfs.Image
	fs     *fusefs.FS

	opened  bool // with process.mu, like the next
	serving bool

	lost     error // the image was changed since it was mounted: there is nothing to serve
	info     Info
	recorder *record.Recorder // nil: nothing is recorded
}

func (i *image) stats() ImageStats {
	if i.lost != nil {
		return ImageStats{}
	}
	_, bytes := i.source.Reads()
	return ImageStats{i.fs.Stats(), bytes, i.fs.Kept()}
}

// commonUser has the images that several users have. It is none of these.
const commonUser = 1 << 32

// sharer returns who gets the share of the image.
func (i *Image) sharer() uint64 {
	if i.Common {
		return commonUser
	}
	return uint64(i.User)
}

// common makes an image that is open one of several users.
func (p *process) common(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := p.images[id]; i != nil && i.opened && !i.Common && i.lost == nil {
		i.Common = true
		i.fs.SetUser(commonUser)
	}
}

// close lets go of all that an image has. To close a file may take long: it may be of a file system that somebody else
// serves.
func (i *image) close() {
	if i.steady != nil {
		i.steady.Close()
	}
	if i.fs != nil {
		i.fs.Close()
	}
	if i.sqfs != nil {
		i.sqfs.Close() // gives back its part of the budget
	}
	go closeAll(append(i.traces, i.list, i.file))
}

// superblockSize is that of squashfs 4.0 (squashfs_fs.h: struct squashfs_super_block).
const superblockSize = 96

func superblock(r *request, files []*os.File) *reply {
	if len(files) != 1 || r.Image.Offset < 0 {
		return refusal(r, errors.New("want one image file, and where the image begins"))
	}
	file, err := fusefs.NewSteady(files[0])
	if err != nil {
		return refusal(r, refused(err))
	}
	b := make([]byte, superblockSize)
	n, err := file.ReadAt(b, r.Image.Offset)
	switch {
	case n == len(b):
		return &reply{Number: r.Number, Info: Info{Superblock: string(b)}}
	case errors.Is(err, io.EOF):
		return refusal(r, &ImageError{"not a squashfs image: it is too short"})
	}
	return refusal(r, refused(err))
}

// refused says what is wrong with an image as an ImageError; not so where it is its storage that fails, which may be over
// in a moment.
func refused(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return fmt.Errorf("its storage fails: %w", err)
	}
	return &ImageError{err.Error()}
}

// open opens an image. It has its place from the beginning, so that it can be forgotten meanwhile.
func (p *process) open(r *request, files []*os.File) {
	i := &image{Image: r.Image}
	signed := 0
	if r.Image.Signed != "" {
		signed = 1
	}
	if r.Image.Traces < 0 || len(files) != 1+signed+r.Image.Traces {
		go closeAll(files)
		p.reply(refusal(r, errors.New("want one image file, its hashes if it is signed, and its traces")))
		return
	}
	i.file, i.traces = files[0], files[1+signed:]
	if signed > 0 {
		i.list = files[1]
	}
	err := p.add(i)
	if err == nil {
		err = p.enter(i.User)
	}
	if err != nil {
		p.remove(i)
		i.close()
		p.reply(refusal(r, err))
		return
	}
	go func() {
		defer p.leave(i.User)
		p.reply(p.guarded(r, func() *reply { return p.understood(r, i) }))
	}()
}

// understood opens an image, and answers.
func (p *process) understood(r *request, i *image) *reply {
	opened := false
	defer func() {
		if !opened { // by a panic too
			p.remove(i)
			i.close()
		}
	}()
	if err := p.understand(i); err != nil {
		return refusal(r, refused(err))
	}
	if opened = p.publish(i); !opened {
		return refusal(r, errors.New("the image was forgotten before it was open"))
	}
	return &reply{Number: r.Number, Info: i.info}
}

func (p *process) add(i *image) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i.ID == 0 || p.images[i.ID] != nil {
		return fmt.Errorf("image %d is there already", i.ID)
	}
	p.images[i.ID] = i
	return nil
}

// publish reports whether an image is still wanted, which is open from then on.
func (p *process) publish(i *image) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i.opened = p.images[i.ID] == i
	p.limitMemory()
	return i.opened
}

// remove takes an image out of the list, if it is in there.
func (p *process) remove(i *image) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.images[i.ID] == i {
		delete(p.images, i.ID)
		p.limitMemory()
	}
}

// forget drops an image that is not served. One that is being opened is dropped when that is done.
func (p *process) forget(id uint64) {
	p.mu.Lock()
	i := p.images[id]
	if i == nil || i.serving {
		p.mu.Unlock()
		return
	}
	delete(p.images, id)
	p.limitMemory()
	p.mu.Unlock()
	if i.opened {
		i.close()
	}
}

// understand looks at an image, and at its traces, for the first time.
func (p *process) understand(i *image) (err error) {
	if i.steady, err = fusefs.NewSteady(i.file); err != nil {
		return err
	}
	if i.Init != nil {
		var changed *ImageError
		if _, err = i.restore(i.Init); errors.As(err, &changed) {
			i.lost = changed
			return nil
		}
	}
	size := i.steady.State().Size
	if i.Offset < 0 || i.Offset > size {
		return fmt.Errorf("offset %d lies outside of the file's %d bytes", i.Offset, size)
	}
	i.source = fusefs.NewSource(i.steady)
	reader := io.ReaderAt(i.source)
	if i.Signed != "" {
		if reader, err = signed.Open(i.source, size, i.Signed, i.list); err != nil {
			return err
		}
	}
	raw := make([]byte, superblockSize)
	if _, err = reader.ReadAt(raw, i.Offset); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	i.sqfs, err = sqfs.New(reader, size-i.Offset, &sqfs.Options{Offset: i.Offset, Metadata: p.metadata})
	if err != nil {
		return err
	}
	sb := i.sqfs.Superblock()
	replay, into := record.Find(i.traces, i.Record-1, &sb)
	i.traces = nil
	if into != nil {
		i.traces = []*os.File{into}
	}
	i.fs = fusefs.New(i.sqfs, fusefs.Options{
		Cache:    p.cache,
		Turns:    p.turns,
		Room:     p.room,
		User:     i.sharer(),
		Owner:    i.Owner,
		Restrict: i.Restrict,
		IDMap:    i.IDMap,
		Source:   i.source,
		Record:   into != nil,
		Replay:   replay,
		Log:      p.log.With("image", i.Name),
	})
	if into != nil {
		i.recorder = record.New(i.fs, sb, replay, into, false)
	}
	i.info = Info{Size: sb.BytesUsed, Superblock: string(raw), Replayed: len(replay)}
	return nil
}

// saved is Info.Init: what a later server needs, as JSON, so that one of another version can do with it what it can.
type saved struct {
	File fusefs.FileState // the file as it was
	FUSE []byte           // of package fusefs
}

func (i *image) save(init []byte) []byte {
	b, err := json.Marshal(saved{i.steady.State(), init})
	if err != nil {
		panic(err) // there is nothing in it that JSON cannot say
	}
	return b
}

// restore returns what package fusefs needs to go on with the mount that an earlier server had, if the file is the same
// as it was then.
func (i *image) restore(init []byte) ([]byte, error) {
	var s saved
	if err := json.Unmarshal(init, &s); err != nil {
		return nil, fmt.Errorf("go on with a mount: read its state: %w", err)
	}
	if i.steady.Expect(s.File); i.steady.Changed() != nil {
		return nil, &ImageError{i.steady.Changed().Error()}
	}
	return s.FUSE, nil
}

// serve serves the mount of an image that is open, until it is gone.
func (p *process) serve(r *request, files []*os.File) {
	i, err := p.take(r.Image.ID)
	if err == nil && len(files) != 1 {
		err = errors.New("want one device")
	}
	if err != nil {
		closeAll(files)
		p.reply(refusal(r, err))
		return
	}
	go func() {
		defer p.serving.Done()
		p.serveUntilGone(i, r, files[0])
	}()
}

// take returns an image for which a device came.
func (p *process) take(id uint64) (*image, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.images[id]
	if i == nil || !i.opened || i.serving {
		return nil, fmt.Errorf("image %d is not open, or is served already", id)
	}
	i.serving = true
	p.serving.Add(1)
	return i, nil
}

func (p *process) serveUntilGone(i *image, r *request, device *os.File) {
	if i.lost != nil {
		p.refuseUntilGone(i, r, device)
		return
	}
	ready, stopRecording := false, func() int { return 0 }
	err := p.answer(i, r, device, func(info Info) {
		ready = true
		if r.Resume {
			i.fs.Touched() // the start is over, and its recording
		} else {
			stopRecording = i.recorder.Start()
		}
		p.reply(&reply{Number: r.Number, Info: info})
	})
	select {
	case <-p.stop: // the mount is another process's from here
		stopRecording()
		return
	default:
	}
	if ready && err != nil {
		// The mount is there, and nobody answers it. Another process is the best that can be done for it.
		p.fail(fmt.Errorf("%s: device failed: %w", i.Name, err))
		return
	}
	p.remove(i)
	if ready {
		p.reply(&reply{Ended: i.ID})
	} else {
		p.reply(refusal(r, err))
	}
	stopRecording() // may wait for the storage of the trace
	i.close()
}

// refuseUntilGone has the users of a mount see that its image is lost.
func (p *process) refuseUntilGone(i *image, r *request, device *os.File) {
	device, err := own(device)
	if err != nil {
		p.remove(i)
		p.reply(refusal(r, err))
		i.close()
		return
	}
	p.log.Error("the image of a mount is lost; what is asked for gets EIO", "image", i.Name, "why", i.lost)
	p.reply(&reply{Number: r.Number, Info: Info{Init: r.Init}})
	if err = fusefs.Refuse(fusefs.Serving{Device: device, NoResend: p.NoResend, Stop: p.stop}); err != nil {
		p.fail(fmt.Errorf("%s: device failed: %w", i.Name, err))
		return
	}
	select {
	case <-p.stop: // the mount is another process's from here
		return
	default:
	}
	p.remove(i)
	p.reply(&reply{Ended: i.ID})
	i.close()
}

// answer answers a device, which it closes.
func (p *process) answer(i *image, r *request, device *os.File, ready func(Info)) error {
	device, err := own(device)
	if err != nil {
		return err
	}
	s := fusefs.Serving{Device: device, NoResend: p.NoResend, Stop: p.stop}
	if r.Resume {
		if s.Resume, err = i.restore(r.Init); err != nil {
			device.Close()
			return err
		}
	}
	s.Store = p.store(device)
	s.Ready = func(init []byte) {
		info := i.info
		info.Init, info.Flags = i.save(init), i.fs.Flags()
		ready(info)
	}
	return i.fs.Serve(s)
}

// own returns a device for which Go's poller does not look, as it does for those that are not to block: each request
// would wake a thread for nothing. It closes device.
func own(device *os.File) (*os.File, error) {
	defer device.Close()
	fd, err := unix.FcntlInt(device.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the device: %w", err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, fmt.Errorf("use the device: %w", err)
	}
	return os.NewFile(uintptr(fd), "fuse"), nil
}

// store returns another descriptor of the device, for what is stored into the page cache; nil if there is none. It need
// be a clone only where what this process has taken is to fail with it: the keeper has the device as well, so that it
// stays open, and what a thread waits for that cannot be killed is answered by the next process.
func (p *process) store(device *os.File) *os.File {
	if p.NoResend {
		store, err := fusefs.Clone(device)
		if err != nil {
			return nil
		}
		return store
	}
	fd, err := unix.FcntlInt(device.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "fuse")
}
