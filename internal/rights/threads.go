//go:build !race

package rights

// OneThread says that rights may be given up by the calling thread alone. Never but
// under the race detector.
const OneThread = false
