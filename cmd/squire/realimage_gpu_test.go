package main_test

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// cudaCount asks the driver itself, through the library that the container has.
const cudaCount = `import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
n = ctypes.c_int()
print(cuda.cuInit(0), cuda.cuDeviceGetCount(ctypes.byref(n)), n.value)`

// testGPU uses the GPUs of this host, if it has any of NVIDIA's.
func testGPU(t *testing.T, l *lab, who user) {
	if _, err := os.Stat("/dev/nvidiactl"); err != nil {
		t.Skip("no NVIDIA GPU here")
	}
	smi := l.run(t, who, l.squire, "run", "--gpus", "all", l.images["zstd"], "--", "nvidia-smi", "-L")
	if smi.status != 0 || !strings.Contains(smi.stdout, "UUID: GPU-") {
		t.Fatalf("nvidia-smi: status %d, stdout %q, stderr %q", smi.status, smi.stdout, smi.stderr)
	}
	count := strings.Count(smi.stdout, "UUID: GPU-")
	for gpus, want := range map[string]int{"all": count, "0": 1} {
		r := l.run(t, who, l.squire, "run", "--gpus", gpus, l.images["zstd"], "--", "python3", "-c", cudaCount)
		if r.status != 0 || r.stdout != "0 0 "+strconv.Itoa(want)+"\n" {
			t.Errorf("--gpus %s: status %d, stdout %q, stderr %q, want %d GPUs", gpus, r.status, r.stdout, r.stderr, want)
		}
	}
	one := l.run(t, who, l.squire, "run", "--gpus", "0", l.images["zstd"], "--", "sh", "-c", "nvidia-smi -L | grep -c 'UUID: GPU-'; ls /dev/nvidia[0-9]* | wc -l")
	if one.stdout != "1\n1\n" {
		t.Errorf("--gpus 0 shows %q, stderr %q", one.stdout, one.stderr)
	}
	l.wantNothingLeft(t)
}
