package pack

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"runtime"
	"time"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/internal/codec"
	"github.com/squirefs/squire/sqfs/internal/disk"
)

// complete checks options and fills in what is left to the Writer.
func (o Options) complete() (Options, error) {
	if o.Compression == 0 {
		o.Compression = sqfs.Zstd
	}
	least, most, normal, ok := codec.Levels(uint16(o.Compression))
	if !ok {
		return o, fmt.Errorf("pack: cannot compress with %v, only with gzip, lz4 and zstd", o.Compression)
	}
	if o.Level == 0 {
		o.Level = normal
	}
	if o.Level < least || o.Level > most {
		return o, fmt.Errorf("pack: %v has levels %d..%d, not %d", o.Compression, least, most, o.Level)
	}
	if o.BlockSize == 0 {
		o.BlockSize = 128 << 10
	}
	if o.BlockSize < 1<<disk.MinBlockLog || o.BlockSize > 1<<disk.MaxBlockLog || bits.OnesCount(uint(o.BlockSize)) != 1 {
		return o, fmt.Errorf("pack: block size %d, want a power of two in 4096..1048576", o.BlockSize)
	}
	if o.Processors < 0 || o.Memory < 0 {
		return o, fmt.Errorf("pack: %d processors, %d bytes of memory", o.Processors, o.Memory)
	}
	if o.Time.IsZero() {
		o.Time = time.Now()
	}
	if o.Processors == 0 {
		o.Processors = runtime.GOMAXPROCS(0)
	}
	if o.Memory == 0 {
		o.Memory = 256 << 20
	}
	return o, nil
}

// flags returns the flags of the superblock, but for xattrs, which depend on the tree.
func (o *Options) flags() uint16 {
	var f uint16
	for _, b := range []struct {
		set  bool
		flag uint16
	}{
		{o.Stored, disk.FlagStoredInodes | disk.FlagStoredData | disk.FlagStoredFragments | disk.FlagStoredXattrs | disk.FlagStoredIDs},
		{o.NoFragments, disk.FlagNoFragments},
		{!o.Duplicates, disk.FlagDuplicates},
		{!o.NoExports, disk.FlagExports},
		{o.compressorOptions() != nil, disk.FlagOptions},
	} {
		if b.set {
			f |= b.flag
		}
	}
	return f
}

// compressorOptions returns the block of options behind the superblock, with its header,
// or nil: writers leave it out where all is as mksquashfs has it by default. LZ4 always
// has one, as the kernel wants its version (fs/squashfs/lz4_wrapper.c). The records are
// struct gzip_comp_opts, lz4_comp_opts and zstd_comp_opts of squashfs-tools.
func (o *Options) compressorOptions() []byte {
	const (
		gzipLevel, gzipWindow = 9, 15
		lz4Legacy, lz4HC      = 1, 1
		zstdLevel             = 15
	)
	le, b := binary.LittleEndian, []byte(nil)
	switch {
	case o.Compression == sqfs.Gzip && o.Level != gzipLevel:
		b = le.AppendUint32(b, uint32(o.Level))
		b = le.AppendUint16(b, gzipWindow)
		b = le.AppendUint16(b, 0) // strategies: none but zlib's own
	case o.Compression == sqfs.LZ4:
		b = le.AppendUint32(b, lz4Legacy)
		hc := uint32(0)
		if o.Level > 0 {
			hc = lz4HC
		}
		b = le.AppendUint32(b, hc)
	case o.Compression == sqfs.Zstd && o.Level != zstdLevel:
		b = le.AppendUint32(b, uint32(o.Level))
	default:
		return nil
	}
	return append(disk.AppendMetadataHeader(nil, len(b), true), b...)
}

// encoder returns a new encoder, nil if nothing is to be compressed.
func (o *Options) encoder(size int) (codec.Encoder, error) {
	if o.Stored {
		return nil, nil
	}
	return codec.NewEncoder(uint16(o.Compression), o.Level, size)
}

// modTime returns what an inode has for a time: seconds in 32 bits without a sign.
func (o *Options) modTime(t int64) uint32 {
	if !o.Newest.IsZero() {
		t = min(t, o.Newest.Unix())
	}
	return uint32(min(max(t, 0), math.MaxUint32))
}
