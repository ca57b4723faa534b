// Command write writes all hostile images to files, NAME.sqfs each, for use with other
// readers, and a list of what is wrong with them to standard output: name, class, what a
// reader must do, the bad paths, and what is wrong.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/squirefs/squire/testdata/hostile"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: write DIR")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "write:", err)
		os.Exit(1)
	}
}

func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for img := range hostile.Images() {
		body := img.Body()
		if err := writeSparse(filepath.Join(dir, img.Name+".sqfs"), body, body.Size); err != nil {
			return err
		}
		fmt.Printf("%s\t%d %s\t%v\t%s\t%s\n", img.Name, img.Class, hostile.Classes[img.Class], img.Want, strings.Join(img.Bad, " "), img.Wrong)
	}
	return nil
}

// writeSparse writes size bytes of r to a file, zeros as holes. What r does not have is
// a hole too: the sources that lose their end while open have all of it here.
func writeSparse(name string, r io.ReaderAt, size int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, zeros := make([]byte, 1<<16), make([]byte, 1<<16)
	for off := int64(0); off < size; off += int64(len(buf)) {
		n, err := r.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if string(buf[:n]) == string(zeros[:n]) {
			continue
		}
		if _, err := f.WriteAt(buf[:n], off); err != nil {
			return err
		}
	}
	return f.Truncate(size)
}
