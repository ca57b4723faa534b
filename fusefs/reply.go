package fusefs

import "sync"

// replyPool keeps buffers for replies with data. Those of the readers themselves are small, as most replies are; a
// buffer of 1 MiB for each reader would be 128 MiB.
type replyPool struct {
	mu   sync.Mutex
	free [len(replyClasses)][][]byte
}

// replyClasses are the lengths of buffers: what the kernel asks for with its usual read-ahead of 128 KiB, and the most
// that it may with another; both with room for a page of headers. Memory that is never written to costs nothing.
var replyClasses = [...]int{128<<10 + replySize, maxRead + replySize}

// maxFree is how many buffers of a class wait for their next use; more are left to the garbage collector.
const maxFree = 16

// noClass marks a buffer that is not of the pool.
const noClass = -1

// get returns a buffer of at least n bytes, which is small if that suffices. Pass both results to put.
func (p *replyPool) get(n int, small []byte) ([]byte, int) {
	if n <= len(small) {
		return small, noClass
	}
	for class, size := range replyClasses {
		if n <= size {
			return p.getClass(class), class
		}
	}
	return make([]byte, n), noClass // more than INIT allows; the kernel does not
}

func (p *replyPool) getClass(class int) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.free[class]
	if len(list) == 0 {
		return make([]byte, replyClasses[class])
	}
	p.free[class] = list[:len(list)-1]
	return list[len(list)-1]
}

func (p *replyPool) put(buf []byte, class int) {
	if class == noClass {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free[class]) < maxFree {
		p.free[class] = append(p.free[class], buf)
	}
}
