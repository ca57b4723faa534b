package codec

func newOptimal(bits uint, level int) finder { return newLazy(bits, 64) }
