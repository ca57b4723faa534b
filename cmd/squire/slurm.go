package main

import "github.com/spf13/cobra"

func slurmCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "slurm",
		Short: "The options of srun, sbatch and salloc, and what Slurm's plugin executes",
		Long: `Slurm's plugin spank_squire.so gives srun, sbatch and salloc these options. They are
pyxis's, with what is added here. What is below this command is executed by the plugin.

  --container-image=IMAGE      a squashfs file or a directory if it starts with "/", "." or
                               "~/", else [docker://][USER@][REGISTRY#]IMAGE[:TAG|@DIGEST],
                               which is imported on each node, into the user's cache;
                               dockerd:// and podman:// are engines of the node
  --container-mounts=SRC[:DST[:FLAGS]][,...]
                               as --mounts of "squire run"; may be repeated
  --container-workdir=DIR      working directory inside (default: the image's)
  --container-name=NAME[:MODE] a container that stays on the node. MODE is auto (join it
                               if it runs, start it if it is there, else create it),
                               create, exec (join it) or no_exec (do not join it)
  --container-save=FILE        write the container to an image when the step has ended
  --[no-]container-mount-home  bind the home directory
  --[no-]container-remap-root  appear as root inside
  --container-writable, --container-readonly
                               with a layer in memory that can be written to, or without
  --[no-]container-entrypoint  run the image's entrypoint once on each node; tasks get the
                               variables and the directory that it leaves
  --container-entrypoint-log   print what the entrypoint says
  --container-env=NAME[,...]   variables whose value in the job wins over the image's; may
                               be repeated
  --container-unshare=NS[,...] namespaces of the container's own: net, ipc, uts, cgroup
  --container-gpus=GPUS        as --gpus of "squire run" (default: what Slurm has assigned)
  --[no-]container-trace       use and record traces of the image; see "squire trace"
  --container-batch=WHERE      where the script of sbatch runs: container, or host, where
                               the other options are the defaults of its steps

An option that is not given is looked for in SQUIRE_CONTAINER_OPTION, with the option's
name in capitals and "_" for "-", then in PYXIS_CONTAINER_OPTION, then in enroot's
ENROOT_MOUNT_HOME, ENROOT_REMAP_ROOT, ENROOT_ROOTFS_WRITABLE and ENROOT_UNSHARE_NET, _IPC
and _UTS, and then in the arguments of the plugin in plugstack.conf: mount_home, remap_root,
writable, execute_entrypoint and batch. Those without a value take yes or no there. A
variable that is empty does not count.

Other arguments of the plugin: container_scope=global|job says whether names are a user's
or a job's; importer=PROGRAM has "PROGRAM get URI" print the path of an image instead of
importing it, and "PROGRAM release" at the end, as pyxis has; it finds runtime_path in
PYXIS_RUNTIME_PATH. pyxis's use_enroot_load, use_squashfuse and sbatch_support are taken and
mean nothing.

A task has the environment that Slurm gives it without LANG, LANGUAGE and LC_ALL, and over
it the image's variables, but for those in --container-env. Images that set PYTORCH_VERSION
get RANK and LOCAL_RANK from SLURM_PROCID and SLURM_LOCALID, and WORLD_SIZE, MASTER_ADDR (the
step's first node) and MASTER_PORT (61000 and more, by the job's number), if these are not set.

SQUIRE_IMPORT_FLAGS are flags of "squire import" for images that are imported. They are
kept in ~/.cache/squire/images, or below SQUIRE_CACHE_DIR, a file for each digest; those
that nobody has run for 60 days go with the next import.

Options that are wrong end srun, sbatch or salloc with exit status 255 before anything has
started, and so do options without an image and a name, which would change nothing.`,
		Args: needCommand,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	cmd.AddCommand(slurmCheckCommand(), slurmStepCommand(), slurmCleanupCommand())
	return cmd
}
