package server

import (
	"testing"
)

// BenchmarkRestart is how long nobody answers when a server has died: from the fork of the next one to its readiness.
func BenchmarkRestart(b *testing.B) {
	n := newNode(b, Config{})
	image, _ := newImage(b, 60, 200<<10)
	n.mount(image, nil)
	for b.Loop() {
		b.StopTimer()
		n.server.Kill()
		n.awaitEnd()
		b.StartTimer()
		n.restart()
	}
}
