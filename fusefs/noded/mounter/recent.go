package mounter

import "github.com/hashicorp/golang-lru/v2/simplelru"

// recent keeps what was used last, up to a number. What is thrown out is given to a function.
type recent[K comparable, V any] struct{ *simplelru.LRU[K, V] }

func newRecent[K comparable, V any](size int, thrownOut func(K, V)) *recent[K, V] {
	lru, err := simplelru.NewLRU(size, thrownOut)
	if err != nil {
		panic(err) // size is a constant above 0
	}
	return &recent[K, V]{lru}
}

func (r *recent[K, V]) get(k K) (V, bool) { return r.Get(k) }
func (r *recent[K, V]) put(k K, v V)      { r.Add(k, v) }

// drop throws out what which names.
func (r *recent[K, V]) drop(which func(K) bool) {
	for _, k := range r.Keys() {
		if which(k) {
			r.Remove(k)
		}
	}
}
