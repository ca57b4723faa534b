package main

import "github.com/spf13/cobra"

// environmentTopic and filesTopic are pages of help and of the manual, for who asks what there is to be set: commands have
// what is theirs, and nobody reads them all.
func environmentTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "environment",
		Short: "Variables that squire heeds",
		Long: `Variables that squire heeds. They come before what the site says in squire.toml of the same thing.

  SQUIRE_SERVICE       auto, node, own or off: which services may serve images, see "squire daemon"
  SQUIRE_SOCKET        where the service of the node is looked for (/run/squire/squire.sock)
  SQUIRE_DATA          named containers (/var/tmp/squire-UID), see "squire container"
  SQUIRE_CACHE_DIR     layers and images of imports, and traces (root: /var/cache/squire, others:
                       ~/.cache/squire); an absolute path
  SQUIRE_TRACE         0: neither use traces nor record them, see "squire trace"
  SQUIRE_IMPORT_FLAGS  flags of "squire import" for images that "squire run" imports
  SQUIRE_CONTAINER_*   options of Slurm's plugin, see "squire slurm"; PYXIS_CONTAINER_* as well

  XDG_CACHE_HOME       as SQUIRE_CACHE_DIR, for users: the directory above squire (~/.cache)
  TMPDIR               where an image of dockerd:// or podman:// lies while it is imported
  SOURCE_DATE_EPOCH    time of an image that is made, see "squire pack" and "squire import"
  ENROOT_CONFIG_PATH   directory of enroot's .credentials (~/.config/enroot)
  https_proxy, no_proxy, SSL_CERT_FILE, SSL_CERT_DIR
                       for registries

For what a container has of the host:

  NVIDIA_VISIBLE_DEVICES, SLURM_STEP_GPUS, SLURM_JOB_GPUS, CUDA_VISIBLE_DEVICES,
  ROCR_VISIBLE_DEVICES
                       which GPUs are there, where "squire run --gpus" does not say it
  NVIDIA_DRIVER_CAPABILITIES
                       which parts of NVIDIA's driver
  MELLANOX_VISIBLE_DEVICES
                       which InfiniBand adapters`,
	}
}

func filesTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "files",
		Short: "Files that squire reads, and squire.toml",
		Long: `Files that squire reads. IMAGE is the file of an image.

  IMAGE.sig                    its signature, see "squire sign"
  IMAGE.trace                  what to read ahead of it, see "squire trace"
  /etc/squire/squire.toml      what the site allows, and its defaults
  /etc/squire/mounts.d/*.fstab what all containers have mounted, in the form of fstab(5)
  /etc/cdi, /var/run/cdi       CDI devices, for "squire run --device"

squire.toml is root's, and closed to others for writing. Every key may be missing; one that nobody
knows is an error.

  data   = "DIR"            named containers; %U in it is the user's number
  cache  = "DIR"            imports and traces, as data
  socket = "PATH"           the service of the node

  [images]                  what may be run; without a list, everything
  directories = ["DIR", …]  only what is in these
  owners      = ["USER", …] only files of these users
  keys        = ["KEY", …]  only what was signed with one of these, as in a .pub file

  [containers]              allow: the user says; default: yes, if nothing is said; force; forbid
  writable   = "allow"
  remap-root = "allow"
  mount-home = "allow"
  devices    = "allow"      --device
  mounts     = ["DIR", "tmpfs", "umount", …]
                            what users may mount; without it, everything

  [accounting]              a line for each step of a job and node
  syslog   = true
  file     = "FILE"
  scontrol = "PROGRAM"      writes it into the job's comment

SLURM.md of Squire's source explains them, SECURITY.md says what they cannot keep a user from.`,
	}
}
