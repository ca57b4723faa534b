// Command guest is all that is in an image that tests import: its entrypoint, and what runs in it. There is no shell.
package main

import (
	"fmt"
	"os"
	"syscall"
)

func main() {
	if os.Args[0] == "/entrypoint" {
		fmt.Println("banner", os.Getenv("KEPT"), os.Getenv("JOBS"))
		os.Setenv("ENTRY", "left")
		if err := os.Chdir("/etc"); err != nil {
			fmt.Println(err)
		}
		err := syscall.Exec(os.Args[1], os.Args[1:], os.Environ())
		fmt.Println(os.Args[1], err)
		os.Exit(1)
	}
	dir, _ := os.Getwd()
	fmt.Print(dir)
	for _, name := range os.Args[1:] {
		fmt.Print(" ", os.Getenv(name))
	}
	fmt.Println()
}
