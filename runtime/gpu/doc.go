// Package gpu finds the accelerators and RDMA adapters of a host, and says
// which files of the host a container needs to use some of them.
//
// [Discover] looks at a root directory, in production "/"; tests give others.
// Every path is resolved by the kernel inside that root, every file is read to
// a limit, and nothing is executed: no NVML, no nvidia-smi, no hooks.
// [Host.Choose] turns what the user asked for, or what Slurm and CUDA's
// variables say, into a [Set]: device nodes, the driver's files, variables.
// The package changes nothing; package runtime makes mounts of a Set.
package gpu
