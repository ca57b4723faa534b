package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/squirefs/squire/sqfs"
)

// imageInfo is what inspect tells, in the form of its --json.
type imageInfo struct {
	Image       string    `json:"image"`
	Offset      int64     `json:"offset,omitempty"`
	Bytes       int64     `json:"bytes"`
	Compression string    `json:"compression"`
	BlockSize   uint32    `json:"block_size"`
	Created     time.Time `json:"created"`
	Inodes      uint32    `json:"inodes"`
	Fragments   uint32    `json:"fragments"`
	IDs         uint16    `json:"ids"`
	Xattrs      bool      `json:"xattrs"`
	Exportable  bool      `json:"exportable"`
	Flags       []string  `json:"flags"`
}

func inspectCommand() *cobra.Command {
	var asJSON bool
	var offset int64
	cmd := &cobra.Command{
		Use:               "inspect [flags] IMAGE",
		Short:             "Show what an image is",
		Args:              needArgs(1, 1),
		ValidArgsFunction: completeImage,
		RunE: func(c *cobra.Command, args []string) error {
			img, done, err := openSquashfs(args[0], offset)
			if err != nil {
				return err
			}
			defer done()
			info := describe(img.Superblock())
			info.Image, info.Offset = args[0], offset
			if asJSON {
				return printJSON(c.OutOrStdout(), info)
			}
			return info.print(c.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().Int64Var(&offset, "offset", 0, "the image starts at this byte of the file")
	return cmd
}

// superblockFlags are the flag bits of the superblock, from the lowest up
// (squashfs_fs.h, SQUASHFS_NOI and following).
var superblockFlags = []string{
	"inodes-stored", "data-stored", "check", "fragments-stored", "no-fragments", "always-fragments",
	"duplicates-removed", "exportable", "xattrs-stored", "no-xattrs", "compressor-options", "ids-stored",
}

func describe(sb sqfs.Superblock) imageInfo {
	info := imageInfo{
		Bytes:       sb.BytesUsed,
		Compression: sb.Compression.String(),
		BlockSize:   sb.BlockSize,
		Created:     time.Unix(int64(sb.MkfsTime), 0).UTC(),
		Inodes:      sb.Inodes,
		Fragments:   sb.Fragments,
		IDs:         sb.IDs,
		Xattrs:      sb.XattrTable >= 0,
		Exportable:  sb.ExportTable >= 0,
		Flags:       []string{},
	}
	for bit, name := range superblockFlags {
		if sb.Flags>>bit&1 != 0 {
			info.Flags = append(info.Flags, name)
		}
	}
	return info
}

func (i imageInfo) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(t, "%s:\t%v\n", name, value) }
	row("Image", printable(i.Image))
	if i.Offset != 0 {
		row("Offset", i.Offset)
	}
	row("Size", fmt.Sprintf("%s (%d bytes)", sizeString(i.Bytes), i.Bytes))
	row("Format", "squashfs 4.0, "+i.Compression+", blocks of "+sizeString(int64(i.BlockSize)))
	row("Created", i.Created.Format(time.RFC3339))
	row("Inodes", i.Inodes)
	row("Fragments", i.Fragments)
	row("Owner ids", i.IDs)
	row("Xattrs", yesNo(i.Xattrs))
	row("Exportable", yesNo(i.Exportable))
	row("Flags", strings.Join(i.Flags, ", "))
	return t.Flush()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// sizeString writes a number of bytes for people.
func sizeString(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1023.95 && u < len(units)-1 {
		f /= 1024
		u++
	}
	return fmt.Sprintf("%s %ciB", strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0"), units[u])
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
