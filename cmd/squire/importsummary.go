package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/sqfs/layer"
	"github.com/squirefs/squire/sqfs/oci"
	"github.com/squirefs/squire/sqfs/pack"
)

// importSummary is what import did, in the form of its --json.
type importSummary struct {
	Source       string    `json:"source"`
	Output       string    `json:"output"`
	UpToDate     bool      `json:"up_to_date"`       // the file was there already; what follows is of it, where it is known
	Digest       string    `json:"digest,omitempty"` // of the manifest, or if there is none of the configuration
	Index        string    `json:"index_digest,omitempty"`
	Platform     string    `json:"platform,omitempty"`
	Created      time.Time `json:"created,omitzero"`
	Layers       int       `json:"layers"`
	LayerBytes   int64     `json:"layer_bytes"` // compressed
	Downloaded   int64     `json:"downloaded_bytes"`
	Bytes        int64     `json:"bytes"` // of the image
	Inodes       int64     `json:"inodes"`
	FileBytes    int64     `json:"file_bytes"` // before compression, duplicates counted
	Duplicates   int64     `json:"duplicates"`
	Saved        int64     `json:"duplicate_bytes"`
	Hidden       int64     `json:"hidden"` // files that a layer above hides
	HiddenBytes  int64     `json:"hidden_bytes"`
	Devices      int64     `json:"devices_skipped"`
	Excluded     int64     `json:"excluded"`
	LayersReread int64     `json:"layers_read_twice"`
	Dropped      []string  `json:"dropped"` // what else was left out, at most 100 lines
	Seconds      float64   `json:"seconds"`
}

func newImportSummary(source importSource, out string) *importSummary {
	rec := source.record()
	s := &importSummary{
		Source: rec.Source, Output: out, Digest: importDigest(rec), Index: rec.Index, Platform: rec.Platform,
		Created: rec.Created, Layers: len(rec.Layers), LayerBytes: layerBytes(rec), Dropped: []string{},
	}
	if img, ok := source.(*imageSource); ok {
		s.Downloaded = img.Size()
	}
	return s
}

// upToDate makes it the summary for an image that is there already.
func (s *importSummary) upToDate(old *oldImage) *importSummary {
	return &importSummary{
		Source: s.Source, Output: s.Output, UpToDate: true, Digest: s.Digest, Index: s.Index, Platform: s.Platform,
		Created: s.Created, Layers: s.Layers, LayerBytes: s.LayerBytes, Bytes: old.bytes, Dropped: []string{},
	}
}

// build writes the image into file, and notes what it became.
func (s *importSummary) build(ctx context.Context, p *importProgress, plan *importPlan, source importSource, out *output) (err error) {
	po, lo := plan.pack, plan.layer                              // the plan stays: it may be tried again
	if po.Time.IsZero() && importDigest(source.record()) != "" { // the same whenever it is made
		seconds := min(max(source.record().Created.Unix(), 0), 1<<32-1)
		po.Time, lo.Time = time.Unix(seconds, 0), seconds
	}
	w, err := pack.NewWriter(out.File(), po)
	if err != nil {
		return err
	}
	defer w.Abort()
	names, sizes := source.layers()
	p.begin(names, sizes, w.Progress)
	defer func() { p.close(err) }()
	root, report, err := source.pack(ctx, w, &lo, out)
	if err != nil {
		return err
	}
	stats, err := w.Finish(root)
	if err != nil {
		return err
	}
	s.fill(&stats, report)
	return nil
}

func (s *importSummary) fill(stats *pack.Stats, r *layer.Report) {
	s.Bytes, s.Inodes, s.FileBytes = stats.Bytes, stats.Inodes, stats.In
	s.Duplicates, s.Saved = stats.Duplicates, stats.Saved
	s.Hidden, s.HiddenBytes, s.Devices, s.Excluded, s.LayersReread = r.Hidden, r.HiddenBytes, r.Devices, r.Excluded, r.Reread
	s.Dropped = append(s.Dropped, r.Dropped...)
}

// maxDroppedTold is how many things that were left out are told one by one.
const maxDroppedTold = 10

// tell says what was done.
func (s *importSummary) tell(say func(string)) {
	source := printable(s.Source)
	if s.UpToDate {
		say(fmt.Sprintf("%s: up to date with %s (%s)", printable(s.Output), source, shortDigest(s.Digest)))
		return
	}
	for i, line := range s.Dropped {
		if i == maxDroppedTold {
			say(andMore(int64(len(s.Dropped) - i)))
			break
		}
		say("left out " + runtime.OneLine(errors.New(line)))
	}
	if s.Saved > 0 { // not for empty files
		say(fmt.Sprintf("%s had the contents of others, which saved %s", plural(s.Duplicates, "file"), sizeString(s.Saved)))
	}
	if s.Hidden > 0 {
		say(fmt.Sprintf("left out %s (%s) that layers above hide", plural(s.Hidden, "file"), sizeString(s.HiddenBytes)))
	}
	if s.Devices > 0 {
		say(fmt.Sprintf("left out %s; --devices keeps them", plural(s.Devices, "device")))
	}
	say(fmt.Sprintf("imported %s to %s: %s, %s of %s in files, in %v", source, printable(s.Output), sizeString(s.Bytes),
		percent(s.Bytes, s.FileBytes), sizeString(s.FileBytes), time.Duration(s.Seconds*float64(time.Second)).Round(100*time.Millisecond)))
}

// oldImage is an image that has the name already.
type oldImage struct {
	*oci.Record
	bytes int64
}

// readOldImage looks at what has the name already. It returns nil if that is nothing, or
// no image that tells what it was made from.
func readOldImage(name string) *oldImage {
	if fi, err := os.Lstat(name); err != nil || !fi.Mode().IsRegular() {
		return nil
	}
	img, done, err := openSquashfs(name, 0)
	if err != nil {
		return nil
	}
	defer done()
	rec, err := oci.ReadRecord(img)
	if err != nil || rec == nil {
		return nil
	}
	return &oldImage{rec, img.Superblock().BytesUsed}
}

// sameImport reports whether an image that is there is what would be made again.
func sameImport(old *oldImage, rec *oci.Record) bool {
	return old != nil && old.Version == rec.Version && importDigest(old.Record) != "" && importDigest(old.Record) == importDigest(rec) &&
		old.Platform == rec.Platform && maps.Equal(old.Options, rec.Options)
}

// importDigest is what an image is known by: its manifest, or where there is none, as in
// what "docker save" writes, its configuration, which names the contents of all layers.
func importDigest(rec *oci.Record) string {
	if rec.Digest == "" {
		return rec.ConfigDigest
	}
	return rec.Digest
}

// oldSource says what another image under the name was made from, and, where that is the
// same source, what is different now.
func oldSource(old *oldImage, rec *oci.Record) string {
	from := shownPath(old.Source)
	switch now := importDigest(rec); {
	case old.Source != rec.Source:
	case importDigest(old.Record) != now:
		from += ", digest " + shortDigest(importDigest(old.Record)) + ", which is " + shortDigest(now) + " now"
	case old.Platform != rec.Platform:
		from += " for " + printable(old.Platform)
	default:
		from += " with other options"
	}
	return from
}
