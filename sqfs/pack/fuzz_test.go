package pack

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// FuzzPack packs a random tree and reads it back.
func FuzzPack(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, seed*7)
	}
	f.Fuzz(func(t *testing.T, a, b uint64) {
		rnd := rand.New(rand.NewPCG(a, b))
		o := randomOptions(rnd)
		m := newModel(rnd, o.BlockSize)
		file := &memFile{}
		m.pack(t, file, o, nil)
		compare(t, fmt.Sprintf("%+v", o), describeImage(t, file, int64(len(file.b))), m.describe())
		sound(t, file, int64(len(file.b)))
	})
}
