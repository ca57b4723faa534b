package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/pack"
)

// packFlags are the flags of verbs that make images, about the image itself.
type packFlags struct {
	comp         string
	level        int
	blockSize    string
	noFragments  bool
	noExports    bool
	noDuplicates bool
	time         string
	processors   int
	memory       string
}

// AddFlags adds the flags to those of a command.
func (p *packFlags) AddFlags(f *pflag.FlagSet) {
	f.StringVar(&p.comp, "comp", "zstd", "the compressor: zstd, gzip, lz4 or none")
	f.IntVar(&p.level, "level", 0, "how hard to compress: zstd 1 to 22, gzip 1 to 9, lz4 1 to 9 for its HC form (default: zstd 3, gzip 9, lz4 without HC)")
	f.StringVar(&p.blockSize, "block-size", "128K", "`SIZE` of blocks, a power of two from 4K to 1M")
	f.BoolVar(&p.noFragments, "no-fragments", false, "no blocks that small files and ends of files share")
	f.BoolVar(&p.noExports, "no-exports", false, "no table for exports by NFS")
	f.BoolVar(&p.noDuplicates, "no-duplicates", false, "do not look for files with the same contents")
	f.StringVar(&p.time, "time", "", "`TIME` of the image, RFC 3339 or seconds since 1970; newer files get it as well (default: $SOURCE_DATE_EPOCH, or now for the image only)")
	f.IntVarP(&p.processors, "processors", "j", 0, "how many processors compress (0: all)")
	f.StringVar(&p.memory, "memory", "256M", "`SIZE` of the blocks that are held in memory")
}

// completeCompressor completes --comp.
var completeCompressor = cobra.FixedCompletions([]string{"zstd", "gzip", "lz4", "none"}, cobra.ShellCompDirectiveNoFileComp)

// options says what the flags and SOURCE_DATE_EPOCH ask for.
func (p *packFlags) options() (pack.Options, error) {
	o := pack.Options{
		NoFragments: p.noFragments, NoExports: p.noExports, Duplicates: p.noDuplicates, Processors: p.processors,
	}
	return o, errors.Join(
		p.setCompression(&o), p.setBlockSize(&o), p.setMemory(&o), p.setTime(&o), checkProcessors(p.processors),
	)
}

// setCompression sets the compressor and its level.
func (p *packFlags) setCompression(o *pack.Options) error {
	highest := 9
	switch p.comp {
	case "zstd":
		o.Compression, highest = sqfs.Zstd, 22
	case "gzip":
		o.Compression = sqfs.Gzip
	case "lz4":
		o.Compression = sqfs.LZ4
	case "none": // what is not compressed every reader can read
		o.Compression, o.Stored, highest = sqfs.Gzip, true, 0
	default:
		return fmt.Errorf("--comp %s: want zstd, gzip, lz4 or none", printable(p.comp))
	}
	o.Level = p.level
	switch {
	case p.level != 0 && highest == 0:
		return fmt.Errorf("--level %d: --comp %s has no levels", p.level, p.comp)
	case p.level < 0 || p.level > highest:
		return fmt.Errorf("--level %d: want 1 to %d for %s", p.level, highest, p.comp)
	}
	return nil
}

// setBlockSize sets the size of blocks (squashfs_fs.h: 4 KiB to 1 MiB).
func (p *packFlags) setBlockSize(o *pack.Options) error {
	n, err := parseSize(p.blockSize)
	if err != nil || n < 4<<10 || n > 1<<20 || n&(n-1) != 0 {
		return fmt.Errorf("--block-size %s: want a power of two from 4K to 1M", printable(p.blockSize))
	}
	o.BlockSize = int(n)
	return nil
}

// setMemory bounds the blocks under way.
func (p *packFlags) setMemory(o *pack.Options) error {
	const least = 16 << 20
	n, err := parseSize(p.memory)
	if err != nil || n < least {
		return fmt.Errorf("--memory %s: want a size such as 256M or 1G, at least 16M", printable(p.memory))
	}
	o.Memory = n
	return nil
}

// setTime sets the time of the image and the bound for those of files, to what --time
// says or else SOURCE_DATE_EPOCH, which mksquashfs knows as well.
func (p *packFlags) setTime(o *pack.Options) error {
	text, from := p.time, "--time"
	if text == "" {
		text, from = os.Getenv("SOURCE_DATE_EPOCH"), "SOURCE_DATE_EPOCH"
	}
	if text == "" {
		return nil
	}
	t, err := parseTime(text)
	if err != nil {
		return fmt.Errorf("%s %s: %w", from, printable(text), err)
	}
	o.Time, o.Newest = t, t
	return nil
}

// parseTime reads seconds since 1970 or a time in the form of RFC 3339, with the bounds
// of the 32 bits that images have.
func parseTime(text string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return t, errors.New("want seconds since 1970 or a time like 2024-05-01T12:00:00Z")
		}
		t = time.Unix(seconds, 0)
	}
	if s := t.Unix(); s < 0 || s >= 1<<32 {
		return t, errors.New("images have times from 1970 to 2106")
	}
	return t, nil
}

// parseSize reads a number of bytes: 4096, 128K, 1M, 2G, and the same with iB or B.
func parseSize(text string) (int64, error) {
	number := strings.TrimRight(text, "KMGTiBkmgtb")
	unit := strings.ToUpper(text[len(number):])
	unit = strings.TrimSuffix(strings.TrimSuffix(unit, "B"), "I")
	shift := map[string]int{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
	n, err := strconv.ParseUint(number, 10, 63)
	by, ok := shift[unit]
	if err != nil || !ok || n > 1<<62>>by {
		return 0, errors.New("want a size such as 4096, 128K or 1M")
	}
	return int64(n << by), nil
}
