package noded

import (
	"errors"
	"maps"
	"slices"
	"time"
)

// ended: the kernel has no mount of the image any more.
func (k *keeper) ended(id uint64) {
	k.mu.Lock()
	img := k.images[id]
	if img == nil || !img.made() {
		k.mu.Unlock()
		return
	}
	lost := img.state != leaving
	k.drop(img)
	k.mu.Unlock()
	k.release(img)
	if lost {
		k.log.Warn("mount ended though the service had it", "id", id, "image", img.name)
	} else {
		k.log.Info("image ended", "id", id, "image", img.name)
	}
}

// retire lets go of the mounts of images; the kernel keeps those of which there are clones.
func (k *keeper) retire(imgs []*image) {
	for _, img := range imgs {
		k.mu.Lock()
		mount := img.mount
		img.mount = nil
		k.mu.Unlock()
		if mount == nil {
			continue
		}
		k.unkeepMount(img)
		mount.Close()
		if m := k.mounter.peek(); m != nil {
			m.Drop(img.id)
		}
		k.log.Info("image let go", "id", img.id, "image", img.name)
	}
	k.saveRecords()
}

// leave marks an image as one that is let go of; k.mu is held. Whoever asks for it now gets a new mount.
func (k *keeper) leave(img *image) {
	img.state = leaving
	if k.keys[img.key] == img {
		delete(k.keys, img.key)
	}
	k.touched()
}

// idle lets go of images that nobody has used for the given time, those of one user or, nil, of all. It returns how many.
func (k *keeper) idle(after time.Duration, user *uint32) int {
	candidates := k.unused(after, user)
	if len(candidates) == 0 {
		return 0
	}
	gone, numbers, err := k.attachedNow(candidates)
	if err != nil {
		return 0 // next time
	}
	var out []*image
	k.mu.Lock()
	for _, img := range candidates {
		for _, id := range gone {
			delete(img.attached, id)
		}
		switch {
		case len(img.refs) > 0 || img.mount == nil || time.Since(img.unused) < after: // used meanwhile
		case numbers[img.number] || len(img.attached) > 0:
			img.unused = time.Now()
		default:
			k.leave(img)
			out = append(out, img)
		}
	}
	k.mu.Unlock()
	k.retire(out)
	return len(out)
}

// lose lets go of an image of whose mount no more clones can be made.
func (k *keeper) lose(img *image) {
	k.mu.Lock()
	known := img.state != leaving && k.images[img.id] == img
	if known {
		k.leave(img)
	}
	k.mu.Unlock()
	if known {
		k.retire([]*image{img})
	}
}

// bury forgets images that were given up and have no clients any more.
func (k *keeper) bury() {
	var dead []*image
	k.mu.Lock()
	for _, img := range k.images {
		if img.state == failed && len(img.refs) == 0 && time.Since(img.unused) > time.Minute {
			k.drop(img)
			dead = append(dead, img)
		}
	}
	k.mu.Unlock()
	for _, img := range dead {
		k.release(img)
	}
}

// unused returns the images without references for the given time.
func (k *keeper) unused(after time.Duration, user *uint32) (out []*image) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, img := range k.images {
		if len(img.refs) == 0 && img.mount != nil && (img.state == served || img.state == waiting) &&
			time.Since(img.unused) >= after && (user == nil || img.user.UID == *user) {
			out = append(out, img)
		}
	}
	return out
}

// attachedNow asks which of the mounts that were attached have gone, and which superblocks of images are mounted in the
// keeper's mount namespace. What is attached meanwhile is in neither.
func (k *keeper) attachedNow(imgs []*image) (gone []uint64, numbers map[uint64]bool, err error) {
	var askIDs, askNumbers []uint64
	k.mu.Lock()
	for _, img := range imgs {
		askIDs = slices.AppendSeq(askIDs, maps.Keys(img.attached))
		askNumbers = append(askNumbers, img.number)
	}
	k.mu.Unlock()
	m := k.mounter.peek()
	if m == nil {
		return nil, nil, errors.New("there is no mounter")
	}
	liveIDs, liveNumbers, err := m.Attached(askIDs, askNumbers)
	if err != nil {
		k.log.Warn("cannot tell which mounts are in use", "error", err)
		return nil, nil, err
	}
	live := set(liveIDs)
	return slices.DeleteFunc(askIDs, func(id uint64) bool { return live[id] }), set(liveNumbers), nil
}

func set(list []uint64) map[uint64]bool {
	m := make(map[uint64]bool, len(list))
	for _, n := range list {
		m[n] = true
	}
	return m
}
