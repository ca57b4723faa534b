package fusefs

import (
	"sync"
	"unsafe"
)

// replies has the buffers of all file systems of the process for replies with data. Those of the workers themselves are
// small, as most replies are; a buffer of 1 MiB for each worker would be 128 MiB.
var replies replyPool

// replyPool keeps buffers by their class, until the garbage collector finds them unused.
type replyPool [len(replyClasses)]sync.Pool // of *byte, the first of a buffer: a slice would be allocated

// replyClasses are the lengths of buffers: what the kernel asks for with its usual read-ahead of 128 KiB, and the most
// that it may with another; both with room for a page of headers. Memory that is never written to costs nothing.
var replyClasses = [...]int{128<<10 + replySize, maxRead + replySize}

// noClass marks a buffer that is not of the pool.
const noClass = -1

// get returns a buffer of at least n bytes, which is small if that suffices. Pass both results to put.
func (p *replyPool) get(n int, small []byte) ([]byte, int) {
	if n <= len(small) {
		return small, noClass
	}
	for class, size := range replyClasses {
		if n > size {
			continue
		}
		if first, ok := p[class].Get().(*byte); ok {
			return unsafe.Slice(first, size), class
		}
		return make([]byte, size), class
	}
	return make([]byte, n), noClass // more than INIT allows; the kernel does not
}

func (p *replyPool) put(buf []byte, class int) {
	if class != noClass {
		p[class].Put(unsafe.SliceData(buf))
	}
}
