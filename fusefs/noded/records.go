package noded

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/fusefs/noded/server"
)

// What a keeper leaves to the next one: descriptors with names, and records that say what they are. systemd's store of
// descriptors keeps them when the keeper dies, or the heir (heir.go), and exec passes them on when it is replaced
// (upgrade.go).
//
// Names are "records", "listen", "lock", "metrics", and "ID.file", "ID.device" and "ID.mount" for each image,
// "ID.list" for one that is signed.

// recordsVersion is that of the form of records. A reader takes what it knows from any version.
const recordsVersion = 1

type records struct {
	Version  int
	Program  string
	Since    time.Time
	NextID   uint64
	Restarts struct{ Server, Mounter uint64 }
	Totals   Totals
	NoIDMap  bool // the kernel has shown that it has none
	Images   []imageRecord
}

type imageRecord struct {
	ID         uint64
	Name       []byte // which need not be UTF-8
	Superblock []byte
	Signed     string
	Identity   struct {
		Device, Inode uint64
		Size          int64
		Sec           int64
		Nsec          uint32
		Offset        int64
	}
	View     viewKey
	One      bool
	Owner    fusefs.Owner
	User     fusefs.Owner
	IDMap    bool
	Loose    bool
	Since    time.Time
	Number   uint64
	Init     []byte
	Size     int64
	Replayed int
	Leaving  bool
	Attached map[uint64]uint32
	Stats    server.ImageStats
}

// recordFile is a file in memory with two places for records, of which the newer one that is whole counts: the keeper may
// be killed while it writes.
type recordFile struct {
	mu    sync.Mutex
	f     *os.File
	count uint64
}

// A place is a head and as many bytes as that says. The file is sparse.
const (
	recordPlace = 64 << 20
	recordMagic = "squire\x00r"
	recordHead  = len(recordMagic) + 8 + 8 + sha256.Size // magic, count, length, checksum of what follows and of these two
)

func newRecordFile() (*recordFile, error) {
	fd, err := unix.MemfdCreate("squire-records", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	return &recordFile{f: os.NewFile(uintptr(fd), "squire-records")}, nil
}

// write puts down what snapshot returns. Snapshots are written in the order in which they are taken.
func (r *recordFile) write(snapshot func() *records) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, err := json.Marshal(snapshot())
	if err != nil {
		return err
	}
	if len(b) > recordPlace-recordHead {
		return errors.New("too many records")
	}
	head := binary.BigEndian.AppendUint64([]byte(recordMagic), r.count+1)
	head = binary.BigEndian.AppendUint64(head, uint64(len(b)))
	sum := sha256.New()
	sum.Write(head)
	sum.Write(b)
	all := append(sum.Sum(head), b...)
	if _, err = r.f.WriteAt(all, int64((r.count+1)%2)*recordPlace); err != nil {
		return err
	}
	r.count++
	return nil
}

// read returns the newest records.
func (r *recordFile) read() (*records, error) {
	var newest []byte
	for place := range int64(2) {
		b, count := readPlace(r.f, place*recordPlace)
		if b != nil && count > r.count {
			newest, r.count = b, count
		}
	}
	if newest == nil {
		return nil, errors.New("no records are whole")
	}
	out := new(records)
	if err := json.Unmarshal(newest, out); err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	return out, nil
}

func readPlace(f io.ReaderAt, at int64) ([]byte, uint64) {
	head := make([]byte, recordHead)
	if _, err := f.ReadAt(head, at); err != nil || string(head[:len(recordMagic)]) != recordMagic {
		return nil, 0
	}
	fixed, sum := head[:recordHead-sha256.Size], head[recordHead-sha256.Size:]
	count := binary.BigEndian.Uint64(fixed[len(recordMagic):])
	size := binary.BigEndian.Uint64(fixed[len(recordMagic)+8:])
	if size > recordPlace {
		return nil, 0
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, at+int64(recordHead)); err != nil {
		return nil, 0
	}
	have := sha256.New()
	have.Write(fixed)
	have.Write(b)
	if !bytes.Equal(have.Sum(nil), sum) {
		return nil, 0
	}
	return b, count
}

// snapshot describes all images that are made.
func (k *keeper) snapshot() *records {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := &records{
		Version: recordsVersion, Program: k.cfg.Version, Since: k.since, NextID: k.nextID,
		Restarts: k.restarts, Totals: k.stats.totals, NoIDMap: k.noIDMap.Load(),
	}
	for _, img := range k.images {
		if img.device != nil {
			r.Images = append(r.Images, img.record(k.stats.of(img.id)))
		}
	}
	return r
}

// record describes an image; keeper.mu is held.
func (img *image) record(stats server.ImageStats) imageRecord {
	r := imageRecord{
		ID: img.id, Name: []byte(img.name), Superblock: []byte(img.key.superblock), Signed: img.key.signed,
		View: img.key.view, One: img.key.one, Owner: img.key.owner, User: img.user, IDMap: img.idmap, Loose: img.loose,
		Since: img.since, Number: img.number, Init: img.init, Size: img.size, Replayed: img.replayed,
		Leaving: img.state == leaving, Attached: make(map[uint64]uint32, len(img.attached)), Stats: stats,
	}
	for id, user := range img.attached {
		r.Attached[id] = user
	}
	i := &img.key.identity
	r.Identity.Device, r.Identity.Inode, r.Identity.Size = i.device, i.inode, i.size
	r.Identity.Sec, r.Identity.Nsec, r.Identity.Offset = i.sec, i.nsec, i.offset
	return r
}

// image makes an image of a record and its descriptors.
func (r *imageRecord) image(file, list, device, mount *os.File) *image {
	img := &image{
		id: r.ID, name: string(r.Name), user: r.User, idmap: r.IDMap, loose: r.Loose, since: r.Since,
		ready: make(chan struct{}), file: file, list: list, device: device, mount: mount, number: r.Number, init: r.Init,
		size: r.Size, replayed: r.Replayed, state: waiting, refs: map[*client]string{}, attached: map[uint64]uint32{},
	}
	close(img.ready)
	for id, user := range r.Attached {
		img.attached[id] = user
	}
	if r.Leaving || mount == nil {
		img.state = leaving
	}
	i := &r.Identity
	img.key = key{
		identity: identity{
			device: i.Device, inode: i.Inode, size: i.Size, sec: i.Sec, nsec: i.Nsec, offset: i.Offset,
			superblock: string(r.Superblock), signed: r.Signed,
		},
		view: r.View, one: r.One, owner: r.Owner,
	}
	return img
}

// saveRecords writes down what there is.
func (k *keeper) saveRecords() {
	if k.records == nil {
		return
	}
	if err := k.records.write(k.snapshot); err != nil {
		k.log.Error("cannot write the records of images", "error", err)
	}
	if err := k.leftovers.write(k.numbers); err != nil {
		k.log.Error("cannot note which mounts there are", "error", err)
	}
}

// keep makes an image survive the keeper.
func (k *keeper) keep(img *image) {
	k.mu.Lock()
	device, mount := img.device, img.mount
	k.mu.Unlock()
	k.entrust(img.fdName("device"), device)
	k.entrust(img.fdName("mount"), mount)
	k.entrust(img.fdName("list"), img.list)
	if !img.loose { // who keeps it would have to close it, which may wait for a user's FUSE server
		k.entrust(img.fdName("file"), img.file)
	}
	k.saveRecords()
}

// unkeep and unkeepMount take back what keep has done.
func (k *keeper) unkeep(img *image) {
	for _, what := range []string{"file", "list", "device", "mount"} {
		k.withdraw(img.fdName(what))
	}
	k.saveRecords()
}

func (k *keeper) unkeepMount(img *image) { k.withdraw(img.fdName("mount")) }

// deviceSuffix ends the names of devices.
const deviceSuffix = ".device"

func (img *image) fdName(what string) string { return strconv.FormatUint(img.id, 10) + "." + what }

// grace is how long images that were taken over wait for the clients that used them to come back.
const grace = 30 * time.Second

// takeState takes over what a keeper before this one has left.
func (k *keeper) takeState(in *inherited) error {
	f := in.take("records")
	if f == nil {
		var err error
		if k.records, err = newRecordFile(); err != nil {
			return err
		}
		k.store.add(nameRecords, k.records.f)
		k.dropForeign(in)
		return nil
	}
	k.records = &recordFile{f: f}
	r, err := k.records.read()
	if err != nil {
		k.log.Error("what the keeper before this one left is lost: its mounts end", "error", err)
		k.dropForeign(in)
		return nil
	}
	if r.Version != recordsVersion {
		k.log.Warn("records are of another version, what is known of it is taken", "version", r.Version, "program", r.Program)
	}
	k.mu.Lock()
	k.since, k.nextID, k.restarts, k.stats.totals = r.Since, r.NextID, r.Restarts, r.Totals
	k.mu.Unlock()
	if r.NoIDMap {
		k.noIDMap.Store(true)
	}
	for i := range r.Images {
		k.takeImage(&r.Images[i], in)
	}
	k.dropForeign(in)
	k.log.Info("went on where the keeper before this one was", "images", len(k.images), "program", r.Program)
	return nil
}

func (k *keeper) takeImage(r *imageRecord, in *inherited) {
	name := (&image{id: r.ID}).fdName
	img := r.image(in.take(name("file")), in.take(name("list")), in.take(name("device")), in.take(name("mount")))
	if img.device == nil || img.file == nil || len(img.init) == 0 || (img.list != nil) != (img.key.signed != "") {
		k.log.Error("an image cannot be taken over: its mount ends", "id", img.id, "image", img.name,
			"device", img.device != nil, "file", img.file != nil)
		k.release(img)
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.nextID = max(k.nextID, img.id)
	img.unused = time.Now().Add(grace)
	k.images[img.id] = img
	if img.state != leaving {
		k.keys[img.key] = img
	}
	k.stats.before[img.id] = r.Stats
}

// dropForeign closes descriptors that nothing is known of, and has the store do so.
func (k *keeper) dropForeign(in *inherited) {
	for name, f := range in.files {
		if base, _, ok := strings.Cut(name, "."); ok && isNumber(base) {
			k.store.remove(name)
			k.log.Warn("a descriptor without a record is closed", "name", name)
		}
		f.Close()
		delete(in.files, name)
	}
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 64)
	return err == nil
}
