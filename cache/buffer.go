package cache

import "math/bits"

// Buffer is a block held by a caller of Get.
type Buffer struct {
	shard *shard
	class int
	mem   []byte // classSize(class) bytes, and sqfs.ReadSlack
	n     int    // of which the block fills n
	key   key

	// While it is kept, guarded by shard.mu.
	image  *image
	places [2]place
	epoch  uint32 // of its last use

	refs int           // guarded by shard.mu; the shard itself has one while the buffer is kept
	done chan struct{} // guarded by shard.mu until closed; nil while nobody waits
	err  error         // written before done is closed, read after
}

// Bytes returns the decoded block, read-only and valid until Release. A fragment block may be shorter than its
// sqfs.Block.Len says.
func (b *Buffer) Bytes() []byte { return b.mem[:b.n:b.n] }

// Release gives the block back. The memory may be used for another block at once.
func (b *Buffer) Release() {
	s := b.shard
	s.mu.Lock()
	s.unrefLocked(b)
	s.mu.Unlock()
}

// Drop is Release for a block that is of no more use here, as the kernel's page cache has all of it now.
func (b *Buffer) Drop() { b.shard.drop(b) }

func (b *Buffer) size() int64 { return classSize(b.class) }

func (b *Buffer) reset() { b.n, b.done, b.err = 0, nil, nil }

// Buffers come in powers of two from 4 KiB (class 0) to 1 MiB, the block sizes squashfs allows (squashfs_fs.h:
// SQUASHFS_FILE_MAX_SIZE). Only the last block of a file without a fragment is anything else.
const (
	minClassLog2 = 12
	maxClassLog2 = 20
	classes      = maxClassLog2 - minClassLog2 + 1
	maxBlock     = 1 << maxClassLog2
)

// classOf returns the smallest class that holds n bytes.
//
// REQUIRES: n <= maxBlock.
func classOf(n uint32) int {
	if n <= 1<<minClassLog2 {
		return 0
	}
	return bits.Len32(n-1) - minClassLog2
}

func classSize(class int) int64 { return 1 << (minClassLog2 + class) }
