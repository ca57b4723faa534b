// Command demo is the only program of the demonstration's image where busybox is not at hand: it tells where it runs.
package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

func main() {
	if err := tell(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func tell() error {
	var uts syscall.Utsname
	if err := syscall.Uname(&uts); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	var release strings.Builder
	for _, c := range uts.Release {
		if c == 0 {
			break
		}
		release.WriteByte(byte(c))
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	fmt.Printf("hello from inside the image, as user %d\nkernel: Linux %s\nthe root directory:", os.Getuid(), &release)
	for _, e := range entries {
		fmt.Print(" ", e.Name())
	}
	fmt.Println()
	return nil
}
