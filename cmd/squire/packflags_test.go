package main

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/pack"
)

func TestPackFlags(t *testing.T) {
	def := pack.Options{Compression: sqfs.Zstd, BlockSize: 128 << 10, Memory: 256 << 20}
	at := time.Unix(1_000_000_000, 0)
	timed := def
	timed.Time, timed.Newest = at, at
	for _, tt := range []struct {
		args, epoch string
		want        pack.Options
		says        string
	}{
		{"", "", def, ""},
		{"--comp gzip --level 3 --block-size 1M -j 7 --memory 1GiB", "", pack.Options{Compression: sqfs.Gzip, Level: 3, BlockSize: 1 << 20, Processors: 7, Memory: 1 << 30}, ""},
		{"--comp none --no-fragments --no-exports --no-duplicates --block-size 4096", "", pack.Options{Compression: sqfs.Gzip, Stored: true, BlockSize: 4096, Memory: 256 << 20, NoFragments: true, NoExports: true, Duplicates: true}, ""},
		{"", "1000000000", timed, ""},
		{"--time 2001-09-09T03:46:40+02:00", "1", timed, ""},
		{"--time 1000000000", "rubbish", timed, ""},
		{"", "rubbish", def, "SOURCE_DATE_EPOCH rubbish: want seconds"},
		{"--time 4294967296", "", def, "1970 to 2106"},
		{"--time -1", "", def, "1970 to 2106"},
		{"--comp xz", "", def, "--comp xz: want zstd, gzip, lz4 or none"},
		{"--comp gzip --level 10", "", def, "want 1 to 9 for gzip"},
		{"--comp none --level 1", "", def, "has no levels"},
		{"--level -1", "", def, "want 1 to 22 for zstd"},
		{"--block-size 2M", "", def, "--block-size 2M: want a power of two"},
		{"--block-size 5K", "", def, "want a power of two"},
		{"--block-size K", "", def, "want a power of two"},
		{"--memory 1M", "", def, "at least 16M"},
		{"-j 2000", "", def, "--processors 2000"},
	} {
		t.Setenv("SOURCE_DATE_EPOCH", tt.epoch)
		var p packFlags
		f := pflag.NewFlagSet("", pflag.ContinueOnError)
		p.AddFlags(f)
		if err := f.Parse(strings.Fields(tt.args)); err != nil {
			t.Fatal(err)
		}
		got, err := p.options()
		if tt.says != "" {
			if err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v, want %q", tt.args, err, tt.says)
			}
			continue
		}
		if !got.Time.Equal(tt.want.Time) || !got.Newest.Equal(tt.want.Newest) {
			t.Errorf("%s: %v and %v", tt.args, got.Time, got.Newest)
		}
		got.Time, got.Newest = tt.want.Time, tt.want.Newest
		if err != nil || got != tt.want {
			t.Errorf("%s: %+v %v", tt.args, got, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "4096": 4096, "128K": 128 << 10, "128k": 128 << 10, "1M": 1 << 20, "1MiB": 1 << 20, "1MB": 1 << 20, "3B": 3, "4G": 4 << 30, "1T": 1 << 40,
		"": -1, "K": -1, "-1": -1, "1KM": -1, "1.5M": -1, "1X": -1, "9999999999G": -1, "99999999999999999999": -1, "1BK": -1,
	} {
		got, err := parseSize(text)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("%q: %d %v", text, got, err)
		}
	}
}
