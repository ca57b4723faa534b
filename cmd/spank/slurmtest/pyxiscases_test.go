package slurmtest

import (
	"fmt"
	"slices"
	"testing"
)

// What cases need that a test cannot bring along.
const (
	needsGPU   = "NVIDIA GPUs with their driver"
	needsApt   = "a mirror of the distribution"
	needsMPI4  = "mpi4py from a registry or an index of packages; MPI over PMI-2 and PMIx has tests of its own"
	needsSSH   = "openssh-server, from a mirror of the distribution, in the image"
	needsDocks = "a docker daemon"
)

func needsImage(name string) string { return "the image " + name + " of a registry" }

// pyxisCases are all of pyxis's, file by file.
var pyxisCases = slices.Concat(
	concurrencyCases, dockerCases, entrypointCases, envCases, envVarCases, execCases, invalidCases, mountHomeCases,
	mountCases, mpiCases, nameCases, pathCases, pytorchCases, remapCases, squashfsCases, sshCases, unshareCases,
	namespaceCases("ipc", "IPC", ipcCases), namespaceCases("net", "network", netCases), namespaceCases("uts", "UTS", utsCases),
	workdirCases, writableCases, sbatchCases,
)

var concurrencyCases = []pyxisCase{
	{file: "concurrency", name: "concurrent container creation", run: concurrentCreation},
	{file: "concurrency", name: "concurrent container reuse", run: concurrentReuse},
}

var dockerCases = slices.Concat(
	imageCases("Docker Hub ubuntu:12.04", "Docker Hub ubuntu:14.04", "Docker Hub ubuntu:16.04", "Docker Hub ubuntu:18.04",
		"Docker Hub ubuntu:20.04", "Docker Hub ubuntu:22.04", "Docker Hub ubuntu:24.04", "Docker Hub ubuntu:26.04",
		"Docker Hub docker.io/ubuntu:24.04", "Docker Hub centos:5", "Docker Hub centos:6", "Docker Hub centos:7",
		"Docker Hub centos:8", "nvcr.io PyTorch 20.02", "nvcr.io PyTorch 22.04", "gcr.io TensorFlow 2.9",
		"gitlab.com NVIDIA device plugin", "nvcr.io NVIDIA device plugin"),
	[]pyxisCase{
		{file: "docker_image", name: "image download must be attempted once", run: downloadOnce},
		{file: "docker_image", name: "docker:// explicit import", needs: needsImage("ubuntu:24.04")},
		{file: "docker_image", name: "dockerd:// import", needs: needsDocks},
		{file: "docker_image", name: "Docker Hub rapidsai/devcontainers (zstd layers)", needs: needsImage("rapidsai/devcontainers")},
	},
)

func imageCases(names ...string) (cases []pyxisCase) {
	for _, name := range names {
		cases = append(cases, pyxisCase{file: "docker_image", name: name, needs: "this image of a registry"})
	}
	return cases
}

var entrypointCases = []pyxisCase{
	{file: "entrypoint", name: "--container-entrypoint: docker:dind", steps: []step{
		{opts: "--container-image={rich} --container-entrypoint", cmd: "echo $ENTRY_HOST", out: "tcp://entry:2375"},
		{opts: "--container-image={rich} --no-container-entrypoint", cmd: "echo [$ENTRY_HOST]", out: "[]"},
	}},
	{file: "entrypoint", name: "manual execution of entrypoint", steps: []step{
		{opts: "--container-image={rich} --container-name={name} --container-writable --container-remap-root", argv: []string{"true"}},
		{opts: "--container-name={name} --container-writable", cmd: "ls /entered", code: 2},
		{opts: "--container-name={name} --container-writable --container-remap-root", argv: []string{"/entrypoint", "true"}},
		{opts: "--container-name={name} --container-writable", cmd: "cat /entered", out: "entered"},
	}},
	{file: "entrypoint", name: "--container-entrypoint and --container-env", steps: []step{
		{opts: "--container-image={rich} --container-entrypoint", cmd: "echo $ENTRY_HOST", out: "tcp://entry:2375"},
		{env: []string{"ENTRY_TLS=1"}, opts: "--container-image={rich} --container-entrypoint", cmd: "echo $ENTRY_HOST", out: "tcp://entry:2375"},
		{env: []string{"ENTRY_TLS=1"}, opts: "--container-image={rich} --container-entrypoint --container-env=ENTRY_TLS", cmd: "echo $ENTRY_HOST", out: "tcp://entry:2376"},
	}},
	{file: "entrypoint", name: "--container-entrypoint-log: nvidia/cuda", steps: []step{
		{opts: "--container-image={rich} --container-entrypoint", argv: []string{"true"}, hasNot: "== ENTRY =="},
		{opts: "--container-image={rich} --container-entrypoint --container-entrypoint-log", argv: []string{"true"}, has: "== ENTRY =="},
	}},
}

var envCases = []pyxisCase{
	{file: "env", name: "passthrough of environment variable", steps: []step{
		{env: []string{"FOO=bar"}, opts: "--container-image={image}", cmd: "echo $FOO", out: "bar"},
	}},
	{file: "env", name: "$TERM special case", steps: []step{
		{env: []string{"TERM=dumb"}, opts: "--no-container-mount-home --container-image={image}", cmd: "echo $TERM", out: "dumb"},
	}},
	{file: "env", name: "$HOME special case", steps: []step{
		{env: []string{"HOME={dir}"}, opts: "--container-mount-home --container-remap-root --container-image={image}", cmd: "findmnt -n -o SOURCE /root", has: "{dir}"},
	}},
	{file: "env", name: "$LANG special case", steps: []step{
		{env: []string{"LANG=en_US.UTF-8"}, opts: "--no-container-mount-home --container-image={image}", cmd: "echo [$LANG]; perl -e 1", out: "[]", hasNot: "Setting locale failed"},
	}},
	{file: "env", name: "nvidia/cuda:10.2-base with $NVIDIA_VISIBLE_DEVICES=0", needs: needsGPU},
	{file: "env", name: "ubuntu:18.04 with $NVIDIA_VISIBLE_DEVICES=all", needs: needsGPU},
	{file: "env", name: "ubuntu:18.04 with $NVIDIA_DRIVER_CAPABILITIES=utility,compute", needs: needsGPU},
	{file: "env", name: "--container-env overriding container variable", steps: []step{
		{opts: "--container-image={rich} --container-env CUDA_VERSION", cmd: "echo $CUDA_VERSION", out: "11.8.0"},
		{env: cudaEnv, opts: "--container-image={rich}", cmd: "echo $CUDA_VERSION", out: "11.8.0"},
		{env: cudaEnv, opts: "--container-image={rich}", cmd: "echo $LD_LIBRARY_PATH", out: "/usr/local/nvidia/lib"},
		{env: cudaEnv, opts: "--container-image={rich} --container-env CUDA_VERSION", cmd: "echo $CUDA_VERSION", out: "12.0.0"},
		{env: cudaEnv, opts: "--container-image={rich} --container-env CUDA_VERSION,LD_LIBRARY_PATH", cmd: "echo $LD_LIBRARY_PATH", out: "/usr/local/cuda/lib64"},
		{env: cudaEnv, opts: "--container-image={rich} --container-env LD_LIBRARY_PATH,CUDA_VERSION", cmd: "echo $LD_LIBRARY_PATH", out: "/usr/local/cuda/lib64"},
	}},
	{file: "env", name: "--container-env forcing $LANG passthrough", steps: []step{
		{env: []string{"LANG=en_US.UTF-8"}, opts: "--container-env LANG --no-container-mount-home --container-image={image}", cmd: "echo $LANG; perl -e 1", out: "en_US.UTF-8", has: "Setting locale failed"},
	}},
}

var cudaEnv = []string{"CUDA_VERSION=12.0.0", "LD_LIBRARY_PATH=/usr/local/cuda/lib64"}

var envVarCases = []pyxisCase{
	{file: "env_vars", name: "PYXIS_CONTAINER_IMAGE environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_IMAGE={rich}"}, cmd: "cat /etc/image-marker", out: "rich"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_IMAGE: command line precedence", steps: []step{
		{env: []string{"PYXIS_CONTAINER_IMAGE={image}"}, opts: "--container-image={rich}", cmd: "cat /etc/image-marker", out: "rich"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_MOUNTS environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_MOUNTS=/home:/test-mnt"}, opts: "--container-image={image}", argv: []string{"findmnt", "/test-mnt"}},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_MOUNTS: command line precedence", steps: []step{
		{env: []string{"PYXIS_CONTAINER_MOUNTS=/home:/mnt-env"}, opts: "--container-image={image} --container-mounts=/tmp:/mnt-cli", cmd: "findmnt /mnt-cli && ! findmnt /mnt-env"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_WORKDIR environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_WORKDIR=/usr/local/bin"}, opts: "--container-image={image}", argv: []string{"pwd"}, out: "/usr/local/bin"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_WORKDIR: command line precedence", steps: []step{
		{env: []string{"PYXIS_CONTAINER_WORKDIR=/usr/local/bin"}, opts: "--container-image={image} --container-workdir=/tmp", argv: []string{"pwd"}, out: "/tmp"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_NAME environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_NAME={name}"}, opts: "--container-image={image} --container-writable --container-remap-root", cmd: "echo kept >/kept"},
		{opts: "--container-name={name}", cmd: "cat /kept", out: "kept"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_NAME: command line precedence", run: namePrecedence},
	{file: "env_vars", name: "PYXIS_CONTAINER_SAVE environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_SAVE=./env.sqsh"}, opts: "--container-image={image} --container-writable", cmd: "echo pyxis >/test"},
		{opts: "--container-image=./env.sqsh", cmd: "cat /test", out: "pyxis"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_SAVE: command line precedence", steps: []step{
		{env: []string{"PYXIS_CONTAINER_SAVE=./env.sqsh"}, opts: "--container-image={image} --container-writable --container-save=./cli.sqsh", cmd: "echo pyxis >/test"},
		{opts: "--container-image=./cli.sqsh", cmd: "cat /test", out: "pyxis"},
		{cmd: "ls {dir}", out: "cli.sqsh"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_MOUNT_HOME=1 environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_MOUNT_HOME=1"}, opts: "--container-remap-root --container-image={image}", argv: []string{"findmnt", "/root"}},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_MOUNT_HOME=0 environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_MOUNT_HOME=0"}, opts: "--container-remap-root --container-image={image}", cmd: "! findmnt /root"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_MOUNT_HOME: command line precedence", steps: []step{
		{env: []string{"PYXIS_CONTAINER_MOUNT_HOME=1"}, opts: "--no-container-mount-home --container-remap-root --container-image={image}", cmd: "! findmnt /root"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_REMAP_ROOT=1 environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_REMAP_ROOT=1"}, opts: "--container-image={image}", cmd: showMap, out: "0 {uid} 1"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_REMAP_ROOT=0 environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_REMAP_ROOT=0"}, opts: "--container-image={image}", cmd: showMap, out: "{uid} {uid} 1"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_REMAP_ROOT: command line precedence", steps: []step{
		{env: []string{"PYXIS_CONTAINER_REMAP_ROOT=1"}, opts: "--no-container-remap-root --container-image={image}", cmd: showMap, out: "{uid} {uid} 1"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_ENTRYPOINT=1 environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_ENTRYPOINT=1"}, opts: "--container-image={rich}", cmd: "echo $ENTRY_HOST", out: "tcp://entry:2375"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_ENTRYPOINT=0 environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_ENTRYPOINT=0"}, opts: "--container-image={rich}", cmd: "echo [$ENTRY_HOST]", out: "[]"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_ENTRYPOINT: command line precedence", steps: []step{
		{env: []string{"PYXIS_CONTAINER_ENTRYPOINT=0"}, opts: "--container-entrypoint --container-image={rich}", cmd: "echo $ENTRY_HOST", out: "tcp://entry:2375"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_ENTRYPOINT_LOG=1 environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_ENTRYPOINT_LOG=1"}, opts: "--container-entrypoint --container-image={rich}", argv: []string{"true"}, has: "== ENTRY =="},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_ENTRYPOINT_LOG=0 environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_ENTRYPOINT_LOG=0"}, opts: "--container-entrypoint --container-image={rich}", argv: []string{"true"}, hasNot: "== ENTRY =="},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_WRITABLE=1 environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_WRITABLE=1"}, opts: "--container-image={image} --container-remap-root", argv: []string{"touch", "/newfile"}},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_WRITABLE=0 environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_WRITABLE=0"}, opts: "--container-image={image}", argv: []string{"touch", "/newfile"}, code: 1, has: readOnly},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_WRITABLE: command line precedence", steps: []step{
		{env: []string{"PYXIS_CONTAINER_WRITABLE=1"}, opts: "--container-readonly --container-image={image}", argv: []string{"touch", "/newfile"}, code: 1, has: readOnly},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_READONLY=1 environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_READONLY=1"}, opts: "--container-image={image}", argv: []string{"touch", "/newfile"}, code: 1, has: readOnly},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_READONLY=0 environment variable", steps: []step{
		{env: []string{"PYXIS_CONTAINER_READONLY=0"}, opts: "--container-image={image} --container-remap-root", argv: []string{"touch", "/newfile"}},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_READONLY: command line precedence", steps: []step{
		{env: []string{"PYXIS_CONTAINER_READONLY=0"}, opts: "--container-readonly --container-image={image}", argv: []string{"touch", "/newfile"}, code: 1, has: readOnly},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_ENV environment variable", steps: []step{
		{env: append([]string{"PYXIS_CONTAINER_ENV=CUDA_VERSION"}, cudaEnv...), opts: "--container-image={rich}", cmd: "echo $CUDA_VERSION", out: "12.0.0"},
	}},
	{file: "env_vars", name: "PYXIS_CONTAINER_ENV: command line precedence", steps: []step{
		{
			env:  append([]string{"PYXIS_CONTAINER_ENV=CUDA_VERSION"}, cudaEnv...),
			opts: "--container-image={rich} --container-env=LD_LIBRARY_PATH", cmd: "echo $CUDA_VERSION $LD_LIBRARY_PATH", out: "11.8.0 /usr/local/cuda/lib64",
		},
	}},
}

const (
	// showMap prints the map of user ids without its padding.
	showMap  = "echo $(cat /proc/self/uid_map)"
	readOnly = "Read-only file system"
)

var execCases = []pyxisCase{
	{file: "exec", name: "enroot exec", differs: "squire container list has the process, and squire exec joins it: there is no enroot", run: execRunning},
	{file: "exec", name: "attach to running container", run: attachRunning},
	{file: "exec", name: "attach to running unnamed container", run: attachUnnamed},
	{file: "exec", name: "attach to running container after directory change", run: attachDirectory},
	{file: "exec", name: "attach to running container with --container--mounts", run: attachMounts},
	{file: "exec", name: "--container-name exec flag on stopped container", steps: []step{
		{opts: "--container-image={image} --container-name={name}", argv: []string{"true"}},
		{opts: "--container-name={name}:exec", argv: []string{"true"}, code: 1},
	}},
	{file: "exec", name: "--container-name no_exec flag on running container", run: noExecRunning},
}

var invalidCases = []pyxisCase{
	{file: "invalid_args", name: "--container-image= (without argument)", steps: []step{
		{opts: "--container-image=", argv: []string{"true"}, code: optionError},
	}},
	{file: "invalid_args", name: "--container-image=<very long invalid image name>", steps: []step{
		{opts: "--container-image=" + fmt.Sprintf("%02000d", 0) + "+/=", argv: []string{"true"}, code: failed},
	}},
	{file: "invalid_args", name: "--container-image=./", steps: []step{
		{opts: "--container-image=./", argv: []string{"true"}, code: failed},
	}},
	{file: "invalid_args", name: "--container-image=/dev/urandom", steps: []step{
		{opts: "--container-image=/dev/urandom", argv: []string{"true"}, code: 1},
	}},
	{file: "invalid_args", name: "--container-name without --container-image", steps: []step{
		{opts: "--container-name={name}", argv: []string{"true"}, code: 1},
	}},
	{file: "invalid_args", name: "--container-name=/tmp/foo", steps: []step{
		{opts: "--container-name=/tmp/foo --container-image={image}", argv: []string{"true"}, code: failed},
	}},
	{file: "invalid_args", name: "--container-name=:exec", steps: []step{
		{opts: "--container-name=:exec --container-image={image}", argv: []string{"true"}, code: optionError},
		{opts: "--container-name=:attach --container-image={image}", argv: []string{"true"}, code: optionError},
	}},
	{file: "invalid_args", name: "--container-name=<very long name>", steps: []step{
		{opts: "--container-name=" + fmt.Sprintf("%0300d", 0) + " --container-image={image}", argv: []string{"true"}, code: failed},
	}},
	{file: "invalid_args", name: "--container-mounts= (without argument)", steps: []step{
		{opts: "--container-mounts= --container-image={image}", argv: []string{"true"}, code: optionError},
	}},
	{file: "invalid_args", name: "--container-mounts=:", steps: []step{
		{opts: "--container-mounts=: --container-image={image}", argv: []string{"true"}, code: optionError},
	}},
	{file: "invalid_args", name: "--container-mounts=/tmp:", steps: []step{
		{opts: "--container-mounts=/tmp: --container-image={image}", argv: []string{"true"}, code: optionError},
	}},
	{file: "invalid_args", name: "--container-workdir= (without argument)", steps: []step{
		{opts: "--container-workdir= --container-image={image}", argv: []string{"true"}, code: optionError},
	}},
	{file: "invalid_args", name: "--container-readonly --container-writable", steps: []step{
		{opts: "--container-readonly --container-writable --container-image={image}", argv: []string{"true"}, code: optionError},
	}},
	{file: "invalid_args", name: "--container-env= (without argument)", steps: []step{
		{opts: "--container-env= --container-image={image}", argv: []string{"true"}, code: optionError},
	}},
	{file: "invalid_args", name: "--container-env trailing comma", steps: []step{
		{opts: "--container-env FOO, --container-image={image}", argv: []string{"true"}, code: optionError},
	}},
	{file: "invalid_args", name: "--container-save=<directory>", steps: []step{
		{opts: "--container-save=/tmp/ --container-image={image}", argv: []string{"true"}, code: optionError},
		{opts: "--container-save=/ --container-image={image}", argv: []string{"true"}, code: optionError},
		{opts: "--container-save=./ --container-image={image}", argv: []string{"true"}, code: optionError},
	}},
}

var mountHomeCases = []pyxisCase{
	{file: "mount_home", name: "--container-mount-home --container-remap-root", steps: []step{
		{opts: "--container-mount-home --container-remap-root --container-image={image}", argv: []string{"findmnt", "/root"}},
	}},
	{file: "mount_home", name: "--container-mount-home --no-container-remap-root", steps: []step{
		{opts: "--container-mount-home --no-container-remap-root --container-image={image}", argv: []string{"findmnt", "{home}"}},
	}},
	{file: "mount_home", name: "--no-container-mount-home --container-remap-root", steps: []step{
		{opts: "--no-container-mount-home --container-remap-root --container-image={image}", cmd: "! findmnt /root"},
	}},
	{file: "mount_home", name: "--no-container-mount-home --no-container-remap-root", steps: []step{
		{opts: "--no-container-mount-home --no-container-remap-root --container-image={image}", cmd: "! findmnt {home}"},
	}},
}

var mountCases = []pyxisCase{
	{file: "mounts", name: "absolute directory", steps: []step{
		{opts: "--container-mounts=/home:/test-mnt --container-image={image}", argv: []string{"findmnt", "/test-mnt"}},
	}},
	{file: "mounts", name: "regular file", steps: []step{
		{cmd: "echo hello >{dir}/file"},
		{opts: "--container-mounts=./file:/there --container-image={image}", argv: []string{"cat", "/there"}, out: "hello"},
	}},
	{file: "mounts", name: "character device file", steps: []step{
		{opts: "--container-mounts=/dev/null:/null --container-image={image}", cmd: "[ -c /null ]"},
	}},
	{file: "mounts", name: "current working directory", steps: []step{
		{opts: "--container-mounts=./:/test-mnt --container-image={image}", cmd: "findmnt /test-mnt && echo there >/test-mnt/file"},
		{cmd: "cat {dir}/file", out: "there"},
	}},
	{file: "mounts", name: "multiple entries", steps: []step{
		{opts: "--container-mounts=./:/test-mnt,/dev/null:/null,/home:/host/home --container-image={image}", cmd: "findmnt /test-mnt && findmnt /null && findmnt /host/home"},
	}},
	{file: "mounts", name: "/etc/shadow", steps: []step{
		{opts: "--container-mounts=/etc/shadow:/shadow --container-image={image}", argv: []string{"findmnt", "/shadow"}},
		{opts: "--container-mounts=/etc/shadow:/shadow --container-image={image}", argv: []string{"cat", "/shadow"}, code: 1, has: "Permission denied"},
	}},
	{file: "mounts", name: "read-only directory", steps: []step{
		{opts: "--container-mounts=/tmp:/mnt:ro --container-image={image}", argv: []string{"touch", "/mnt/foo"}, code: 1, has: readOnly},
	}},
	{file: "mounts", name: "multiple flags: unbindable+ro", steps: []step{
		{opts: "--container-mounts=/tmp:/mnt:unbindable+ro --container-image={image}", argv: []string{"touch", "/mnt/foo"}, code: 1, has: readOnly},
		{opts: "--container-mounts=/tmp:/mnt:unbindable+ro --container-image={image}", argv: []string{"findmnt", "-n", "-o", "PROPAGATION", "/mnt"}, has: "unbindable"},
	}},
	{file: "mounts", name: "path escape attempt", steps: []step{
		{opts: "--container-mounts=/home:../home --container-image={image}", argv: []string{"true"}, code: failed, has: "ross-device link"},
	}},
	{file: "mounts", name: "short-form", steps: []step{
		{opts: "--container-image={image}", cmd: "! findmnt /var/lib"},
		{opts: "--container-mounts=/var/lib --container-image={image}", argv: []string{"findmnt", "/var/lib"}},
	}},
	{file: "mounts", name: "tmpfs", steps: []step{
		{opts: "--container-mounts=tmpfs:/mytmpfs --container-image={image}", argv: []string{"findmnt", "-n", "-o", "fstype", "/mytmpfs"}, out: "tmpfs"},
	}},
	{file: "mounts", name: "tmpfs huge pages", steps: []step{
		{opts: "--container-mounts=tmpfs:/mytmpfs:huge=within_size --container-image={image}", argv: []string{"findmnt", "-n", "-o", "options", "/mytmpfs"}, has: "huge=within_size"},
	}},
	{file: "mounts", name: "devpts", steps: []step{
		{opts: "--container-mounts=devpts:/mydevpts:ro --container-image={image}", argv: []string{"true"}, code: optionError},
	}},
	{file: "mounts", name: "invalid target", steps: []step{
		{opts: "--container-mounts=/tmp:mnt:ro --container-image={image}", argv: []string{"true"}, code: optionError},
	}},
	{file: "mounts", name: "space in source path", steps: []step{
		{cmd: "mkdir '{dir}/a dir' && echo hello >'{dir}/a dir/file'"},
		{opts: "--container-mounts={dir}/a\x00dir:/mnt/test --container-image={image}", argv: []string{"cat", "/mnt/test/file"}, out: "hello"},
	}},
	{file: "mounts", name: "space in destination path", steps: []step{
		{opts: "--container-mounts=/tmp:/mnt/my\x00mount --container-image={image}", argv: []string{"findmnt", "/mnt/my mount"}},
	}},
	{file: "mounts", name: "space in source and destination", steps: []step{
		{cmd: "mkdir '{dir}/a dir' && echo hello >'{dir}/a dir/file'"},
		{opts: "--container-mounts={dir}/a\x00dir:/mnt/my\x00mount --container-image={image}", argv: []string{"cat", "/mnt/my mount/file"}, out: "hello"},
	}},
	{file: "mounts", name: "non-existent source path", steps: []step{
		{opts: "--container-mounts=/nonexistent/path/foo:/mnt --container-image={image}", argv: []string{"true"}, code: 1, has: "source path does not exist"},
		{opts: "--container-mounts=/nonexistent/path/foo:/mnt --container-image={image}", argv: []string{"true"}, code: 1, has: "/nonexistent/path/foo"},
	}},
	{file: "mounts", name: "non-existent source with valid mount", steps: []step{
		{opts: "--container-mounts=/tmp:/mnt,/nonexistent/path:/mnt2 --container-image={image}", argv: []string{"true"}, code: 1, has: "source path does not exist"},
		{opts: "--container-mounts=/tmp:/mnt,/nonexistent/path:/mnt2 --container-image={image}", argv: []string{"true"}, code: 1, has: "/nonexistent/path"},
	}},
	{file: "mounts", name: "umount", steps: []step{
		{opts: "--container-mount-home --container-remap-root --container-image={image}", argv: []string{"findmnt", "/root"}},
		{opts: "--container-mount-home --container-remap-root --container-mounts=umount:/root --container-image={image}", cmd: "! findmnt /root"},
	}},
}

var mpiCases = []pyxisCase{
	{file: "mpi", name: "PMIx mount", run: func(t *testing.T, a *allocation) {
		pmixOrSkip(t)
		a.step(t, step{opts: "--mpi=pmix -n4 --container-image={image}", cmd: `[ -n "$PMIX_SERVER_TMPDIR" ] && findmnt "$PMIX_SERVER_TMPDIR"`})
	}},
	{
		file: "mpi", name: "PMIx environment variables",
		differs: "PMIX_MCA_psec and PMIX_MCA_gds are not set: PMIx reads what they would be made of, and with them images without munge fail",
		run: func(t *testing.T, a *allocation) {
			pmixOrSkip(t)
			a.step(t, step{opts: "--container-name={name} --container-image={image}", cmd: "true"})
			a.step(t, step{opts: "--mpi=pmix -n4 --container-name={name}", cmd: `[ -n "$PMIX_SECURITY_MODE" ] && [ -n "$PMIX_GDS_MODULE" ] && [ "$PMIX_RANK" = "$SLURM_PROCID" ]`})
		},
	},
	{file: "mpi", name: "PMIx Horovod", needs: "the image nvidia/tensorflow of a registry"},
	{file: "mpi", name: "PMI2 file descriptor", steps: []step{
		{opts: "--mpi=pmi2 -n4 --container-image={image}", cmd: `[ -n "$PMI_FD" ] && readlink /proc/self/fd/$PMI_FD | grep -q socket`},
	}},
	{file: "mpi", name: "PMI2 environment variables", steps: []step{
		{opts: "--mpi=pmi2 -n4 --container-image={image}", cmd: `[ -n "$PMI_RANK" ]`},
		{opts: "--mpi=pmi2 -n4 --container-image={image}", cmd: `[ "$PMI_SIZE" -eq 4 ]`},
	}},
	{file: "mpi4py", name: "ubuntu:20.04", needs: needsMPI4},
	{file: "mpi4py", name: "ubuntu:22.04", needs: needsMPI4},
	{file: "mpi4py", name: "ubuntu:24.04", needs: needsMPI4},
	{file: "mpi4py", name: "ubuntu:26.04", needs: needsMPI4},
	{file: "mpi4py", name: "nvcr.io/nvidia/pytorch:26.02-py3", needs: needsMPI4},
	{file: "mpi4py", name: "nvcr.io/nvidia/pytorch:26.03-py3", needs: needsMPI4},
}

var nameCases = []pyxisCase{
	{file: "name", name: "unnamed container cleanup", run: unnamedCleanup},
	{file: "name", name: "named container persistence", steps: []step{
		{opts: "--container-image={image}", cmd: "! which private"},
		{opts: "--container-image={image} --container-name={name} --container-writable --container-remap-root", cmd: install},
		{opts: "--container-image={image} --container-name={name}", argv: []string{"which", "private"}},
		{opts: "--container-name={name}", argv: []string{"which", "private"}},
		{opts: "--container-image={image}", cmd: "! which private"},
	}},
	{file: "name", name: "named container manual remove", differs: "it is removed by squire container rm; the name has no pyxis_ in front", run: manualRemove},
	{file: "name", name: "--container-name create flag", steps: []step{
		{opts: "--container-image={image} --container-name={name}", argv: []string{"true"}},
		{opts: "--container-name={name}:create --container-image={image}", argv: []string{"true"}, code: 1},
	}},
	{file: "name", name: "container cleanup after job cancellation", run: cancelCleanup},
}

// install stands for the installation of a package.
const install = "cp /bin/true /usr/local/bin/private"

var pathCases = []pyxisCase{
	{file: "path", name: "redis-server PATH resolution", steps: []step{
		{opts: "--container-image={rich}", argv: []string{"private-tool", "--version"}, out: "private 1"},
	}},
	{file: "path", name: "rabbitmq PATH resolution", steps: []step{
		{opts: "--container-image={rich} --container-writable", argv: []string{"private-tool", "version"}, out: "private 1"},
	}},
}

var pytorchCases = []pyxisCase{
	{file: "pytorch", name: "nvcr.io PyTorch environment variables", steps: []step{
		{opts: "--container-image={rich} --container-name={name}", argv: []string{"true"}},
		{opts: "-n4 --container-name={name}", cmd: `[ -n "$MASTER_ADDR" ] && [ -n "$MASTER_PORT" ]`},
		{opts: "-n4 --container-name={name}", cmd: `[ -n "$LOCAL_RANK" ] && [ "$LOCAL_RANK" -eq "$SLURM_LOCALID" ]`},
		{opts: "-n4 --container-name={name}", cmd: `[ -n "$RANK" ] && [ "$RANK" -eq "$SLURM_PROCID" ]`},
	}},
	{file: "pytorch", name: "Docker Hub PyTorch environment variables", run: pytorchRanks},
}

var remapCases = []pyxisCase{
	{file: "remap_root", name: "--container-remap-root uid map", steps: []step{
		{opts: "--container-remap-root --container-image={image}", argv: []string{"id", "-u"}, out: "0"},
		{opts: "--container-remap-root --container-image={image}", cmd: showMap, out: "0 {uid} 1"},
	}},
	{file: "remap_root", name: "--no-container-remap-root uid map", steps: []step{
		{opts: "--no-container-remap-root --container-image={image}", argv: []string{"id", "-u"}, out: "{uid}"},
		{opts: "--no-container-remap-root --container-image={image}", cmd: showMap, out: "{uid} {uid} 1"},
	}},
	{file: "remap_root", name: "--container-remap-root seccomp", steps: []step{
		{opts: "--container-remap-root --container-image={image}", cmd: "grep '^Seccomp:' /proc/self/status", out: "Seccomp:\t2"},
	}},
	{
		file: "remap_root", name: "--no-container-remap-root seccomp",
		differs: "no filter without --container-remap-root: there is nothing to answer for package managers, and no_new_privs and an empty bounding set do the rest",
		steps: []step{
			{opts: "--no-container-remap-root --container-image={image}", cmd: "grep -E '^(NoNewPrivs|CapBnd):' /proc/self/status", out: "CapBnd:\t0000000000000000\nNoNewPrivs:\t1"},
		},
	},
	{file: "remap_root", name: "apt-get install file", needs: needsApt},
	{file: "remap_root", name: "apt-get install emacs-nox", needs: needsApt},
	{file: "remap_root", name: "yum install file", needs: needsImage("almalinux:9")},
	{file: "remap_root", name: "yum install emacs-nox", needs: needsImage("almalinux:9")},
}

var squashfsCases = []pyxisCase{
	{file: "squashfs_image", name: "Ubuntu 24.04 squashfs", steps: []step{
		{opts: "--container-image={image}", cmd: "grep -c ^ID=debian /etc/os-release", out: "1"},
	}},
	{file: "squashfs_image", name: "import - export - import", differs: "it is squire container save that writes the image: there is no enroot", run: exportImport},
	{file: "squashfs_image", name: "--container-save absolute path", steps: saveSteps("{dir}/saved.sqsh")},
	{file: "squashfs_image", name: "--container-save relative path", steps: saveSteps("./saved.sqsh")},
	{file: "squashfs_image", name: "squashfs with --container-writable", differs: "its file is in /tmp, which is the host's here; with enroot it is an empty one", steps: []step{
		{opts: "--container-image={image} --container-writable", cmd: "echo test >/tmp/{name} && cat /tmp/{name} && rm /tmp/{name}", out: "test"},
		{opts: "--container-image={image} --container-writable", cmd: "echo test >/opt/file.txt && cat /opt/file.txt", out: "test"},
	}},
	{file: "squashfs_image", name: "squashfs with --container-mounts", steps: []step{
		{cmd: "echo mounted content >{dir}/file"},
		{opts: "--container-image={image} --container-mounts={dir}/file:/mnt/test.txt", argv: []string{"cat", "/mnt/test.txt"}, out: "mounted content"},
	}},
	{file: "squashfs_image", name: "squashfs with --container-workdir", steps: []step{
		{opts: "--container-image={image} --container-workdir=/tmp", argv: []string{"pwd"}, out: "/tmp"},
	}},
	{file: "squashfs_image", name: "squashfs with --no-container-remap-root", steps: []step{
		{opts: "--container-image={image} --no-container-remap-root", argv: []string{"id", "-u"}, out: "{uid}"},
	}},
	{file: "squashfs_image", name: "squashfs with multiple tasks", run: multipleTasks},
	{file: "squashfs_image", name: "squashfs concurrent access", run: concurrentAccess},
	{file: "squashfs_image", name: "squashfs container cleanup", run: unnamedCleanup},
	{file: "squashfs_image", name: "squashfs nonexistent file", steps: []step{
		{opts: "--container-image=./nonexistent.sqsh", argv: []string{"true"}, code: 1, has: "nonexistent.sqsh"},
	}},
}

// saveSteps saves an image, and twice again over itself.
func saveSteps(image string) []step {
	return []step{
		{opts: "--container-image={image} --container-writable --container-save=" + image, cmd: "echo pyxis >/test"},
		{opts: "--container-image=" + image + " --container-writable --container-save=" + image, cmd: "echo slurm >/test2"},
		{opts: "--container-image=" + image + " --container-writable --container-save=" + image + " --container-remap-root", cmd: install},
		{opts: "--container-image=" + image, argv: []string{"which", "private"}},
		{opts: "--container-image=" + image, cmd: "cat /test /test2", out: "pyxis\nslurm"},
	}
}

var sshCases = []pyxisCase{
	{file: "ssh", name: "ssh to container running sshd", needs: needsSSH},
	{file: "ssh", name: "attach to container running sshd", needs: needsSSH},
}

var unshareCases = []pyxisCase{
	{file: "unshare", name: "--container-unshare=foo", steps: []step{
		{opts: "--container-unshare=foo --container-image={image}", argv: []string{"true"}, code: optionError, has: "unknown namespace"},
	}},
	{file: "unshare", name: "--container-unshare=net,foo", steps: []step{
		{opts: "--container-unshare=net,foo --container-image={image}", argv: []string{"true"}, code: optionError, has: "unknown namespace"},
	}},
	{file: "unshare", name: "--container-unshare=net,ipc,uts unshares all three", run: unshareAll},
	{file: "unshare", name: "PYXIS_CONTAINER_UNSHARE=net env var", run: unshareVariable},
}

// namespaceCases are the cases that exist for each kind of namespace, and its own in between.
func namespaceCases(kind, title string, own []pyxisCase) (cases []pyxisCase) {
	file := "unshare_" + kind
	cases = append(cases,
		pyxisCase{file: file, name: "--container-unshare=" + kind + " creates new " + kind + "ns", run: unshareNew(kind)},
		pyxisCase{file: file, name: "--container-unshare=" + kind + ": multiple tasks", run: unshareTasks(kind)})
	for _, c := range own {
		c.file = file
		cases = append(cases, c)
	}
	return append(cases,
		pyxisCase{file: file, name: "no --container-unshare shares host " + kind + "ns", run: unshareNone(kind)},
		pyxisCase{file: file, name: "--container-name joins existing " + kind + "ns container", run: unshareJoin(kind)},
		pyxisCase{file: file, name: "--container-unshare=" + kind + " on existing container without " + kind + "ns", run: unshareRefused(kind, title)})
}

var netCases = []pyxisCase{
	{name: "--container-unshare=net loopback check", steps: []step{
		{opts: "--container-unshare=net --container-image={image}", argv: []string{"bash", "-c", "exec </dev/tcp/127.0.0.1/65535"}, code: 1, has: "Connection refused"},
	}},
	{name: "--container-unshare=net external network check", steps: []step{
		{opts: "--container-unshare=net --container-image={image}", argv: []string{"bash", "-c", "exec </dev/tcp/192.0.2.1/53"}, code: 1, has: "Network is unreachable"},
	}},
}

var ipcCases = []pyxisCase{
	{name: "--container-unshare=ipc isolates SysV shared memory", run: isolatesMemory},
	{name: "--container-unshare=ipc uses private /dev, /dev/shm and /dev/mqueue", run: privateDevices},
}

var utsCases = []pyxisCase{
	{name: "--container-unshare=uts isolates sethostname", run: isolatesHostname},
}

var workdirCases = []pyxisCase{
	{file: "workdir", name: "--container-workdir absolute target", steps: []step{
		{opts: "--container-workdir=/usr/local/bin --container-image={image}", argv: []string{"pwd"}, out: "/usr/local/bin"},
	}},
	{file: "workdir", name: "--container-workdir path escape attempt", steps: []step{
		{opts: "--container-workdir=../ --container-image={image}", argv: []string{"pwd"}, out: "/"},
	}},
	{file: "workdir", name: "--container-workdir target doesn't exist", steps: []step{
		{opts: "--container-workdir=/pyxis --container-image={image}", argv: []string{"true"}, code: 1, has: "/pyxis: No such file or directory"},
	}},
	{file: "workdir", name: "container image workdir", steps: []step{
		{opts: "--container-image={rich}", argv: []string{"pwd"}, out: "/workspace"},
	}},
}

var writableCases = []pyxisCase{
	{file: "writable", name: "--container-readonly", steps: []step{
		{opts: "--container-readonly --container-image={image}", argv: []string{"touch", "/newfile"}, code: 1, has: readOnly},
	}},
	{file: "writable", name: "--container-writable", steps: []step{
		{opts: "--container-writable --container-image={image}", argv: []string{"touch", "/newfile"}},
	}},
}

var sbatchCases = []pyxisCase{
	{file: "sbatch", name: "sbatch ubuntu:16.04", run: batchOption},
	{file: "sbatch", name: "sbatch centos:8", run: batchOption},
}
