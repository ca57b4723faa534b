package sqfs

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// CompressorOption is a setting that the writer of an image recorded, such as "level".
type CompressorOption struct {
	Name, Value string
}

// CompressorOptions returns the settings in the block behind the superblock. Writers
// leave it out if all are defaults; then there are none. Nothing that is read depends
// on them, and no reader checks them: they may be anything.
func (img *Image) CompressorOptions() ([]CompressorOption, error) {
	if img.sb.Flags&disk.FlagOptions == 0 {
		return nil, nil
	}
	blk, err := img.metadata(disk.SuperblockSize, img.sb.InodeTable)
	if err != nil {
		return nil, fmt.Errorf("compressor options: %w", err)
	}
	return decodeOptions(img.sb.Compression, blk.data)
}

// decodeOptions decodes struct comp_opts of the file NAME_wrapper.h of a compressor.
// New versions add fields at the end.
func decodeOptions(c Compression, b []byte) ([]CompressorOption, error) {
	if want := map[Compression]int{Gzip: 8, LZO: 8, XZ: 8, LZ4: 8, Zstd: 4}[c]; len(b) < want {
		return nil, corrupt(disk.SuperblockSize, "options of %v have %d bytes, want %d", c, len(b), want)
	}
	le := binary.LittleEndian
	i32 := func(at int) string { return fmt.Sprint(int32(le.Uint32(b[at:]))) }
	switch c {
	case Gzip:
		return []CompressorOption{
			{"level", i32(0)},
			{"window", fmt.Sprint(le.Uint16(b[4:]))},
			{"strategies", bitNames(uint32(le.Uint16(b[6:])), "default", "filtered", "huffman_only", "run_length_encoded", "fixed")},
		}, nil
	case LZO:
		names := []string{"lzo1x_1", "lzo1x_1_11", "lzo1x_1_12", "lzo1x_1_15", "lzo1x_999"}
		algorithm := i32(0)
		if n := le.Uint32(b); n < uint32(len(names)) {
			algorithm = names[n]
		}
		return []CompressorOption{{"algorithm", algorithm}, {"level", i32(4)}}, nil
	case XZ:
		return []CompressorOption{
			{"dictionary_size", i32(0)},
			{"filters", bitNames(le.Uint32(b[4:]), "x86", "powerpc", "ia64", "arm", "armthumb", "sparc", "arm64", "riscv")},
		}, nil
	case LZ4:
		o := []CompressorOption{{"version", i32(0)}, {"flags", bitNames(le.Uint32(b[4:]), "hc")}}
		if len(b) >= 12 {
			o = append(o, CompressorOption{"level", i32(8)}) // squashfs-tools 4.7.6: of lz4 without hc it is the acceleration
		}
		return o, nil
	case Zstd:
		return []CompressorOption{{"level", i32(0)}}, nil
	}
	return nil, nil
}

// bitNames names the bits that are set in v, from the lowest up; those without a name
// are shown as numbers.
func bitNames(v uint32, names ...string) string {
	var set []string
	for bit := range 32 {
		switch {
		case v>>bit&1 == 0:
		case bit < len(names):
			set = append(set, names[bit])
		default:
			set = append(set, fmt.Sprintf("%#x", uint32(1)<<bit))
		}
	}
	return strings.Join(set, ",")
}

// ReadSuperblock returns what the superblock of the image in r says, for a look at
// images that [New] refuses; the arguments are those of New. Only the magic is certain
// to be right. The error, if that is, is the first thing about the superblock itself
// that New would refuse; the superblock is filled in all the same.
func ReadSuperblock(r io.ReaderAt, size int64, opts *Options) (Superblock, error) {
	if opts == nil {
		opts = &Options{}
	}
	img := &Image{src: r, base: opts.Offset}
	raw, err := img.readSuperblock(size)
	if err != nil {
		return Superblock{}, err
	}
	err = img.checkSuperblock(raw, size)
	if raw.Magic != disk.Magic {
		return Superblock{}, err
	}
	return Superblock{
		Inodes: raw.Inodes, MkfsTime: raw.MkfsTime, BlockSize: raw.BlockSize, Fragments: raw.Fragments,
		Compression: Compression(raw.Compression), Flags: raw.Flags, IDs: raw.IDs,
		Root: InodeRef(raw.RootInode), BytesUsed: int64(raw.BytesUsed),
		InodeTable: int64(raw.InodeTable), DirectoryTable: int64(raw.DirectoryTable), FragmentTable: int64(raw.FragmentTable),
		ExportTable: int64(raw.ExportTable), IDTable: int64(raw.IDTable), XattrTable: int64(raw.XattrTable),
	}, err
}
