/*
 * spank_squire.so puts the tasks of Slurm's steps into Squire's containers. It has no policy and makes no container: in
 * srun, sbatch and salloc it collects the options and lets "squire slurm check" judge them; in slurmstepd it starts
 * "squire slurm step", the step process, as the user; each task asks that over a socket where to go, and goes there.
 * DESIGN.md has the protocol.
 *
 * Parts run as root in slurmstepd. Nothing of the user's is parsed there and no path of the user's is opened, and the
 * step process, which is the user's, is waited for with a limit.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <slurm/spank.h>

SPANK_PLUGIN(squire, 1)

#ifndef SQUIRE
#define SQUIRE "/usr/local/bin/squire"
#endif
#define PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define BATCH_STEP 0xfffffffbU /* SLURM_BATCH_SCRIPT of slurm.h */
#define MAX_REPLY (4 << 20)    /* bytes of a reply to a task */
#define MAX_FDS 8              /* descriptors of a reply */
#ifndef END_SECONDS
#define END_SECONDS 30         /* for the step process to clean up */
#endif

/* ---- options ---- */

static int given(int index, const char *value, int remote);

#define OPTION(name, arg, usage) { (char *)"container-" name, (char *)arg, (char *)usage, arg != NULL, 0, given }
#define OPPOSITE(name, usage) { (char *)"no-container-" name, NULL, (char *)usage, 0, 0, given }

static struct spank_option options[] = {
	OPTION("image", "IMAGE", "image to run in: a file (/… or ./…) or [USER@][REGISTRY#]IMAGE[:TAG]"),
	OPTION("mounts", "SRC:DST[:FLAGS][,…]", "directories and files of the host to mount in the container"),
	OPTION("workdir", "PATH", "working directory in the container"),
	OPTION("name", "NAME[:MODE]", "name of a container to keep; MODE is auto, create, exec or no_exec"),
	OPTION("save", "PATH", "file to save the container to, as an image, when the step ends"),
	OPTION("mount-home", NULL, "mount the home directory"),
	OPPOSITE("mount-home", "do not mount the home directory"),
	OPTION("remap-root", NULL, "be root in the container"),
	OPPOSITE("remap-root", "be yourself in the container"),
	OPTION("entrypoint", NULL, "run the image's entrypoint"),
	OPPOSITE("entrypoint", "do not run the image's entrypoint"),
	OPTION("entrypoint-log", NULL, "print what the entrypoint says"),
	OPTION("writable", NULL, "let the container's files be changed"),
	OPTION("readonly", NULL, "do not let the container's files be changed"),
	OPTION("env", "NAME[,…]", "variables to keep as they are, whatever the image says"),
	OPTION("unshare", "NS[,…]", "namespaces of the container's own: net, ipc, uts"),
	OPTION("gpus", "WHICH", "GPUs to show, as with squire run --gpus"),
	OPTION("trace", NULL, "record what the start reads, to read it ahead the next time"),
	OPPOSITE("trace", "do not record"),
	OPTION("batch", "WHERE", "where a batch script runs: container, or host, with the options for its steps"),
};

enum { OPTIONS = sizeof options / sizeof *options };

/* What was given, in order: in srun first what sbatch or salloc left in the environment. */
static char *names[128], *values[128];
static int ngiven;

static int given(int index, const char *value, int remote)
{
	(void)remote;
	char *copy = strdup(value && index >= 0 && index < OPTIONS && options[index].has_arg ? value : "");
	if (!copy || index < 0 || index >= OPTIONS || ngiven == sizeof values / sizeof *values) {
		slurm_error("squire: too many options");
		return -1;
	}
	names[ngiven] = options[index].name;
	values[ngiven++] = copy;
	return 0;
}

/* wanted says whether squire has anything to do: there are options, or their defaults in variables. */
static bool wanted(char **env)
{
	for (; env && *env; env++) {
		if (!strncmp(*env, "SQUIRE_CONTAINER_", 17) || !strncmp(*env, "PYXIS_CONTAINER_", 16))
			return true;
	}
	return ngiven > 0;
}

/* program returns the path of squire: an argument in plugstack.conf has it when it is not where it was built for. */
static char *program(int ac, char **av)
{
	for (int i = 0; i < ac; i++) {
		if (!strncmp(av[i], "squire=", 7))
			return av[i] + 7;
	}
	return (char *)SQUIRE;
}

/* number returns one of Slurm's numbers, 0 where it has none: all of these have 32 bits. */
static uint32_t number(spank_t spank, spank_item_t item)
{
	uint32_t n = 0;

	return spank_get_item(spank, item, &n) == ESPANK_SUCCESS ? n : 0;
}

/* ---- documents: files in memory, JSON but for a task's ---- */

static FILE *memory(void)
{
	int fd = memfd_create("squire", MFD_CLOEXEC | 8U /* MFD_NOEXEC_SEAL, from Linux 6.3 on */);

	if (fd < 0)
		fd = memfd_create("squire", MFD_CLOEXEC);
	return fd < 0 ? NULL : fdopen(fd, "w+");
}

/* put_string writes a string. It need not be UTF-8: each byte becomes the character of that number. */
static void put_string(FILE *f, const char *s)
{
	putc('"', f);
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;
		if (c < 0x20 || c >= 0x7f || c == '"' || c == '\\')
			fprintf(f, "\\u%04x", c);
		else
			putc(c, f);
	}
	putc('"', f);
}

static void put_field(FILE *f, const char *name, const char *value)
{
	fprintf(f, ",\"%s\":", name);
	put_string(f, value);
}

/* put_place ends a document: the directory and the environment. */
static void put_place(FILE *f, char **env)
{
	char *cwd = getcwd(NULL, 0);

	put_field(f, "cwd", cwd ? cwd : "/");
	free(cwd);
	fputs(",\"env\":[", f);
	for (char **e = env; e && *e; e++) {
		fputs(e != env ? "," : "", f);
		put_string(f, *e);
	}
	fputs("]}", f);
}

/* put_options begins a document with what was given, and the plugin's arguments. */
static void put_options(FILE *f, int ac, char **av)
{
	fputs("{\"version\":2,\"given\":[", f);
	for (int i = 0; i < ngiven; i++) {
		fprintf(f, "%s{\"name\":\"%s\"", i ? "," : "", names[i]);
		put_field(f, "value", values[i]);
		putc('}', f);
	}
	fputs("],\"plugin\":[", f);
	for (int i = 0; i < ac; i++) {
		fputs(i ? "," : "", f);
		put_string(f, av[i]);
	}
	putc(']', f);
}

/* written ends a document, and says whether all of it is there. */
static bool written(FILE *f)
{
	return fflush(f) == 0 && !ferror(f) && lseek(fileno(f), 0, SEEK_SET) == 0;
}

/* read_back reads what a program wrote, as a string. */
static void read_back(FILE *f, char *text, size_t size)
{
	ssize_t n = pread(fileno(f), text, size - 1, 0);

	text[n < 0 ? 0 : n] = 0;
}

static void tell_lines(bool error, char *text)
{
	char *rest = NULL;

	for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		for (char *c = line; *c; c++)
			*c = (unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c; /* it also goes to slurmd's log */
		if (error)
			slurm_error("squire: %s", line);
		else
			slurm_spank_log("squire: %s", line);
	}
}

/* ---- processes ---- */

/*
 * arrange makes fds, of which -1 is /dev/null, the descriptors 0 to n-1, closes all others, and undoes what the host
 * program arranged for signals: exec keeps what is ignored and blocked.
 */
static bool arrange(int *fds, int n)
{
	sigset_t none;

	for (int s = 1; s < NSIG; s++)
		signal(s, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (int i = 0; i < n; i++) {
		int fd = fds[i] < 0 ? open("/dev/null", O_RDWR | O_CLOEXEC) : fds[i];
		if ((fds[i] = fcntl(fd, F_DUPFD_CLOEXEC, n)) < 0)
			return false;
	}
	for (int i = 0; i < n; i++) {
		if (dup2(fds[i], i) != i)
			return false;
	}
	if (syscall(SYS_close_range, n, ~0U, 0) < 0) {
		for (long fd = sysconf(_SC_OPEN_MAX); fd >= n; fd--) /* before Linux 5.9 */
			close((int)fd);
	}
	return true;
}

/*
 * run executes squire, waits for it, and returns its exit status, or -1. With ms it is killed after so many milliseconds,
 * and its end not waited for. 0: no limit.
 */
static int run(char *const argv[], char *const env[], FILE *in, FILE *out, FILE *err, int ms)
{
	int status = -1;

	pid_t ended, pid = fork();
	if (pid == 0) {
		if (arrange((int[]){ in ? fileno(in) : -1, fileno(out), fileno(err) }, 3))
			execve(argv[0], argv, env);
		dprintf(2, "%s: %s\n", argv[0], strerror(errno));
		_exit(127);
	}
	while (pid > 0 && (ended = waitpid(pid, &status, ms ? WNOHANG : 0)) <= 0 && (ended == 0 || errno == EINTR)) {
		if (ms && --ms == 0)
			return dprintf(fileno(err), "squire %s %s does not end\n", argv[1], argv[2]), kill(pid, SIGKILL), -1;
		usleep(1000);
	}
	return pid > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* ---- the beginning ---- */

static int step = -1;              /* the socket to the step process */
static int theirs;                 /* the step process's end of it */
static int closer[2] = { -1, -1 }; /* a byte has theirs closed, another says that it is */
static bool closed;                /* that was done */
static char step_error[512];       /* why there is none: told by the tasks, as earlier srun would end with 0 */

/*
 * close_theirs is a thread of slurmstepd's that closes the step process's end of the socket when a byte comes. From
 * Slurm 24.05 on, with a plugin that gives jobs a /tmp of their own, slurm_spank_user_init runs in a process that
 * shares slurmstepd's memory and not its descriptors: it can neither make the socket there nor close anything.
 */
static void *close_theirs(void *unused)
{
	char byte;

	while (read(closer[0], &byte, 1) < 0 && errno == EINTR)
		;
	close(theirs);
	return send(closer[0], "", 1, MSG_NOSIGNAL) == 1 ? unused : NULL;
}

/* close_ours has that thread close it, once: as long as this end is open here nobody sees that the step process ends. */
static void close_ours(void)
{
	char byte;

	if (step >= 0 && !closed && send(closer[1], "", 1, MSG_NOSIGNAL) == 1)
		(void)!read(closer[1], &byte, 1);
	closed = true;
}

static int make_socket(void)
{
	int ends[2];
	pthread_t thread;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0 &&
		socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, closer) == 0) {
		theirs = ends[1];
		if (pthread_create(&thread, NULL, close_theirs, NULL) == 0 && pthread_detach(thread) == 0)
			step = ends[0];
	}
	return 0; /* without a socket no step process starts, and the tasks say so */
}

int slurm_spank_init(spank_t spank, int ac, char **av)
{
	spank_context_t context = spank_context();

	(void)ac, (void)av;
	for (int i = 0; i < OPTIONS && context != S_CTX_SLURMD && context != S_CTX_JOB_SCRIPT; i++) {
		options[i].val = i;
		if (spank_option_register(spank, &options[i]) != ESPANK_SUCCESS)
			return -1;
	}
	return 0;
}

/*
 * slurm_spank_init_post_opt has squire judge the options before there is a job, and ends the program with 255 when it
 * refuses them, as Slurm does. Slurm passes on only the last value of an option, and inherited options with those that
 * override them: what is meant is in squire's output then, and goes into a variable.
 */
int slurm_spank_init_post_opt(spank_t spank, int ac, char **av)
{
	spank_context_t context = spank_context();
	char *squire = program(ac, av), meant[65536], words[16384];
	int status = -1;
	char **env = environ;

	if (context == S_CTX_REMOTE)
		spank_get_item(spank, S_JOB_ENV, &env);
	if ((context != S_CTX_LOCAL && context != S_CTX_ALLOCATOR && context != S_CTX_REMOTE) || !wanted(env))
		return 0;
	if (context == S_CTX_REMOTE)
		return make_socket();
	FILE *in = memory(), *out = memory(), *err = memory();
	if (in && out && err) {
		put_options(in, ac, av);
		put_field(in, "context", context == S_CTX_LOCAL ? "local" : "allocator");
		put_field(in, "program", program_invocation_short_name);
		put_place(in, environ);
		if (written(in))
			status = run((char *[]){ squire, "slurm", "check", NULL }, environ, in, out, err, 0);
		read_back(out, meant, sizeof meant);
		read_back(err, words, sizeof words);
		fclose(in), fclose(out), fclose(err);
		tell_lines(status != 0, words);
	}
	if (status != 0) {
		if (status < 0)
			slurm_error("squire: cannot run %s: %s", squire, strerror(errno));
		exit(255);
	}
	return *meant ? setenv("SLURM_SQUIRE_OPTIONS", meant, 1) : unsetenv("SLURM_SQUIRE_OPTIONS");
}

/* ---- slurmstepd: the step process ---- */

static struct {
	uid_t uid;
	gid_t gid, *groups;
	int ngroups;
} user;

/*
 * become_user gives up root's rights for good, and slurmstepd's protection when memory is short, which children share.
 * A slurmd that is not root's has nothing to give up.
 */
static bool become_user(void)
{
	if (getuid() == 0) {
		int fd = seteuid(0) < 0 ? -1 : open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, "0", 1) != 1 || setgroups((size_t)user.ngroups, user.groups) < 0 ||
			setresgid(user.gid, user.gid, user.gid) < 0 || setresuid(user.uid, user.uid, user.uid) < 0)
			return false;
	}
	bool root_again = user.uid != 0 && (setuid(0) == 0 || setgid(0) == 0);
	errno = EPERM;
	return !root_again && getuid() == user.uid && geteuid() == user.uid && getgid() == user.gid && getegid() == user.gid;
}

/* step_process becomes squire, whose descriptor 3 is the socket; or tells status why not. */
static void step_process(char *squire, char *name, int order, int status)
{
	int fds[] = { order, -1, -1, theirs, status };

	if (setsid() >= 0 && arrange(fds, 5) && fcntl(4, F_SETFD, FD_CLOEXEC) == 0 && become_user())
		execve(squire, (char *[]){ squire, "slurm", "step", name, NULL }, (char *[]){ PATH, NULL });
	fds[0] = errno;
	(void)!write(4, fds, sizeof *fds);
	_exit(1);
}

/* start_step starts the step process, which is nobody's child: slurmstepd waits for all of its own. */
static int start_step(char *squire, char *name, int order)
{
	int status[2], error = EAGAIN;

	if (step < 0 || pipe2(status, O_CLOEXEC) < 0)
		return EMFILE;
	pid_t child = fork();
	if (child == 0) {
		if (fork() == 0)
			step_process(squire, name, order, status[1]);
		_exit(0);
	}
	close(status[1]);
	while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	if (child > 0 && read(status[0], &error, sizeof error) == 0)
		error = 0;
	close(status[0]);
	return error;
}

static void put_order(FILE *f, spank_t spank, char **env)
{
	char **argv = NULL;
	int argc = 0;

	fprintf(f, ",\"job\":%u,\"step\":%u,\"array_job\":%u,\"array_task\":%u,\"nodes\":%u,\"node_id\":%u,\"tasks\":%u,"
		"\"total_tasks\":%u,\"uid\":%u,\"gid\":%u", number(spank, S_JOB_ID), number(spank, S_JOB_STEPID),
		number(spank, S_JOB_ARRAY_ID), number(spank, S_JOB_ARRAY_TASK_ID), number(spank, S_JOB_NNODES),
		number(spank, S_JOB_NODEID), number(spank, S_JOB_LOCAL_TASK_COUNT), number(spank, S_JOB_TOTAL_TASK_COUNT),
		user.uid, user.gid);
	if (number(spank, S_JOB_STEPID) == BATCH_STEP && spank_get_item(spank, S_JOB_ARGV, &argc, &argv) == ESPANK_SUCCESS &&
		argc > 0) {
		fputs(",\"batch\":true", f);
		put_field(f, "script", argv[0]);
	}
	put_place(f, env);
}

static glob_t devices; /* those that a control group may keep a task from: found once for all tasks */

/* slurm_spank_user_init starts the step process when the step wants a container. It never fails, see step_error. */
int slurm_spank_user_init(spank_t spank, int ac, char **av)
{
	char *squire = program(ac, av), **env = NULL, name[32];
	int error = EINVAL;

	spank_get_item(spank, S_JOB_ENV, &env);
	if (!wanted(env))
		return 0;
	snprintf(name, sizeof name, "%u.%u", number(spank, S_JOB_ID), number(spank, S_JOB_STEPID));
	FILE *order = memory();
	if (order && spank_get_item(spank, S_JOB_UID, &user.uid) == ESPANK_SUCCESS &&
		spank_get_item(spank, S_JOB_GID, &user.gid) == ESPANK_SUCCESS &&
		spank_get_item(spank, S_JOB_SUPPLEMENTARY_GIDS, &user.groups, &user.ngroups) == ESPANK_SUCCESS) {
		put_options(order, ac, av);
		put_order(order, spank, env);
		error = written(order) ? start_step(squire, name, fileno(order)) : ENOMEM;
	}
	if (order)
		fclose(order);
	glob("/dev/{nvidia[0-9]*,nvidia-caps/*,dri/*}", GLOB_BRACE, NULL, &devices);
	if (error)
		snprintf(step_error, sizeof step_error, "cannot start %s: %s", squire, strerror(error));
	close_ours();
	return 0;
}

/* ---- a task ---- */

/* fail ends the task as Slurm does after an error, but without Slurm's own three lines about it. */
static void fail(const char *what, const char *object)
{
	slurm_error("squire: %s%s: %s", what, object, strerror(errno));
	_exit(1);
}

/* put_record writes a record: a letter, a text, and NUL. */
static void put_record(FILE *f, char letter, const char *text)
{
	putc(letter, f);
	fwrite(text, 1, strlen(text) + 1, f);
}

/*
 * put_denied writes the device nodes that the task's control group keeps it from, which only a process in that can
 * tell: access(2) asks the group as open(2) does, and wakes no device.
 */
static void put_denied(FILE *f)
{
	for (size_t i = 0; i < devices.gl_pathc; i++) {
		if (access(devices.gl_pathv[i], R_OK | W_OK) < 0 && errno == EPERM)
			put_record(f, 'd', devices.gl_pathv[i]);
	}
}

/* ask sends what the task is to the step process, and returns the socket that the reply comes to. */
static int ask(spank_t spank)
{
	char **env = NULL, byte[] = "t";
	int pair[2];

	spank_get_item(spank, S_JOB_ENV, &env);
	FILE *f = memory();
	if (!f || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		fail("cannot ask for a container", "");
	put_denied(f);
	for (; env && *env; env++)
		put_record(f, 'e', *env);
	put_record(f, 't', "");
	if (!written(f))
		fail("cannot ask for a container", "");

	int fds[] = { pair[1], 2, fileno(f) };
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof fds)] = { 0 };
	struct iovec iov = { byte, 1 };
	struct msghdr msg = { NULL, 0, &iov, 1, control, sizeof control, 0 };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof fds);
	memcpy(CMSG_DATA(c), fds, sizeof fds);
	if (sendmsg(step, &msg, MSG_NOSIGNAL) < 0)
		fail("squire slurm step ended before it answered", "");
	close(pair[1]);
	fclose(f);
	return pair[0];
}

/*
 * receive returns the records of the reply, of the given length, and its descriptors. Before them is a sign and the
 * length, in 8 hexadecimal digits. It takes as long as squire does.
 */
static char *receive(int socket, size_t *len, int *fds, int *nfds, bool *granted)
{
	char head[10] = "", *records = NULL, *end;
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(MAX_FDS * sizeof(int))] = { 0 };
	struct iovec iov = { head, 9 };
	struct msghdr msg = { NULL, 0, &iov, 1, control, sizeof control, 0 };

	errno = ECONNRESET;
	if (recvmsg(socket, &msg, MSG_WAITALL | MSG_CMSG_CLOEXEC) != 9)
		fail("squire slurm step ended before it answered", "");
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
		*nfds = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(c), (size_t)*nfds * sizeof(int));
	}
	*granted = head[0] == '+';
	*len = strtoul(head + 1, &end, 16);
	errno = EPROTO;
	if (*end || *len > MAX_REPLY || (msg.msg_flags & MSG_CTRUNC) || !(records = calloc(1, *len + 1)) ||
		(*len && recv(socket, records, *len, MSG_WAITALL) != (ssize_t)*len))
		fail("squire slurm step's answer is broken", "");
	return records;
}

/* limit gives up rights for good: the command has the capabilities of keep, and gets no others. */
static void limit(uint64_t keep)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct caps[2] = { { (uint32_t)keep, (uint32_t)keep, 0 },
		{ (uint32_t)(keep >> 32), (uint32_t)(keep >> 32), 0 } };

	for (int c = 0; c < 64 && prctl(PR_CAPBSET_READ, c, 0, 0, 0) >= 0; c++) {
		if (!(keep >> c & 1) && prctl(PR_CAPBSET_DROP, c, 0, 0, 0) < 0)
			fail("cannot drop capabilities", "");
	}
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 || syscall(SYS_capset, &header, caps) < 0 ||
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		fail("cannot drop capabilities", "");
}

/* filter installs a filter of system calls: 16 hexadecimal digits an instruction. */
static void filter(const char *text)
{
	struct sock_filter code[BPF_MAXINSNS], *c = code;

	for (; c < code + BPF_MAXINSNS && strnlen(text, 16) == 16; text += 16, c++) {
		if (sscanf(text, "%4hx%2hhx%2hhx%8x", &c->code, &c->jt, &c->jf, &c->k) != 4)
			break;
	}
	struct sock_fprog prog = { (unsigned short)(c - code), code };
	errno = EPROTO;
	if (*text || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog, 0, 0) < 0)
		fail("cannot filter system calls", "");
}

/*
 * supervise is for a step process that has a word on how the task ends, as --container-save: the process that Slurm
 * knows waits outside the container for a child, in which this returns. It ends as the child, unless the answer to the
 * child's wait status is not "+".
 */
static void supervise(spank_t spank, int socket)
{
	char text[4096] = "";
	int status = 0;

	pid_t pid = fork();
	if (pid < 0)
		fail("cannot fork", "");
	if (pid == 0) {
		snprintf(text, sizeof text, "%d", getpid());
		spank_setenv(spank, "SLURM_TASK_PID", text, 1);
		return;
	}
	if (!arrange((int[]){ -1, -1, 2, socket }, 4)) /* what else is open is the child's to close */
		_exit(1);
	for (int s = 1; s < NSIG; s++)
		signal(s, s == SIGCHLD ? SIG_DFL : SIG_IGN); /* the child gets Slurm's signals, too */
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	snprintf(text, sizeof text, "%d\n", status);
	ssize_t n = send(3, text, strlen(text), MSG_NOSIGNAL);
	memset(text, 0, sizeof text);
	if (n > 0)
		n = recv(3, text, sizeof text - 1, MSG_WAITALL);
	if (text[0] != '+') {
		dprintf(2, "slurmstepd: error: squire: %s\n", text[0] ? text + 1 : "squire slurm step ended before the task");
		_exit(1);
	}
	if (WIFSIGNALED(status)) {
		signal(WTERMSIG(status), SIG_DFL);
		prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* the child's core is the one to have */
		raise(WTERMSIG(status));
	}
	_exit(WEXITSTATUS(status));
}

/* obey does what a record of the reply says, a letter and its text. */
static void obey(spank_t spank, int socket, char *record)
{
	char *text = record + 1, *value = strchr(text, '=');

	switch (*record) {
	case 'k':
		supervise(spank, socket);
		return;
	case 's':
		if (value)
			*value = 0;
		if (!value || spank_setenv(spank, text, value + 1, 1) != ESPANK_SUCCESS)
			fail("cannot set ", text);
		return;
	case 'u':
		spank_unsetenv(spank, text);
		return;
	case 'w':
		if (chdir(text) < 0)
			fail("couldn't chdir to ", text);
		return;
	case 'c':
		limit(strtoull(text, NULL, 16));
		return;
	case 'f':
		filter(text);
		return;
	}
	errno = EPROTO;
	fail("squire slurm step says what this plugin does not know: ", record);
}

/* slurm_spank_task_init, as the user in the task's process, has it go into the container. */
int slurm_spank_task_init(spank_t spank, int ac, char **av)
{
	int fds[MAX_FDS], nfds = 0, joined = 0;
	size_t len = 0;
	bool granted = false;

	(void)ac, (void)av;
	if (*step_error) {
		if (number(spank, S_TASK_ID) == 0)
			slurm_error("squire: %s", step_error);
		_exit(1);
	}
	if (step < 0)
		return 0;
	signal(SIGTERM, SIG_DFL); /* slurmstepd has handlers; whoever waits for an image ends when the step is cancelled */
	signal(SIGINT, SIG_DFL);
	int socket = ask(spank);
	char *records = receive(socket, &len, fds, &nfds, &granted);
	if (!granted) { /* nothing to say when another task of the node says it */
		tell_lines(true, records);
		_exit(1);
	}
	for (char *r = records, *next; r < records + len; r = next) {
		next = r + strlen(r) + 1;
		if (*r != 'n' || joined == nfds)
			obey(spank, socket, r);
		else if (setns(fds[joined], 0) < 0)
			fail("cannot join the container's namespace ", r + 1);
		else
			close(fds[joined++]);
	}
	close(socket);
	free(records);
	return 0;
}

/* ---- the end ---- */

/*
 * end_step has the step process clean up and end. It is the user's, who may have stopped it: then it is left to the
 * epilog.
 */
static void end_step(void)
{
	struct timeval limit = { END_SECONDS, 0 };
	char answer[4096];
	ssize_t n = -1;

	if (step < 0)
		return;
	close_ours(); /* there is no step process where Slurm gave the step up before it, as one whose output has no directory */
	if (setsockopt(step, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0)
		send(step, "{\"end\":true}", 12, MSG_NOSIGNAL | MSG_DONTWAIT);
	for (int i = 0; i < 4 && n != 0; i++) { /* its answer, and its end; a signal or two */
		n = recv(step, answer, sizeof answer - 1, 0);
		if (n < 0 && errno == EAGAIN)
			break;
		answer[n < 0 ? 0 : n] = 0;
		tell_lines(true, answer + (n > 0));
		shutdown(step, SHUT_WR); /* it has answered, and now reads that there is no more */
	}
	if (n != 0)
		slurm_error("squire: squire slurm step does not end");
	close(step);
	step = -1;
}

/* slurm_spank_task_exit ends the step with its last task, before Slurm kills what is left of it. */
int slurm_spank_task_exit(spank_t spank, int ac, char **av)
{
	static uint32_t ended;

	(void)ac, (void)av;
	if (++ended == number(spank, S_JOB_LOCAL_TASK_COUNT))
		end_step();
	return 0;
}

/* slurm_spank_exit ends a step whose tasks did not all start. */
int slurm_spank_exit(spank_t spank, int ac, char **av)
{
	(void)spank, (void)ac, (void)av;
	end_step();
	return 0;
}

/* slurm_spank_job_epilog, as root, removes what is left of a job. It does not fail: Slurm would drain the node. */
int slurm_spank_job_epilog(spank_t spank, int ac, char **av)
{
	char job[16], uid[16], sluid[64], words[16384], *other = getenv("SLURM_JOB_SLUID");
	FILE *out = memory();

	if (!out || !number(spank, S_JOB_ID))
		return 0;
	snprintf(job, sizeof job, "%u", number(spank, S_JOB_ID));
	snprintf(uid, sizeof uid, "%u", number(spank, S_JOB_UID));
	snprintf(sluid, sizeof sluid, "SLURM_JOB_SLUID=%s", other ? other : "");
	int status = run((char *[]){ program(ac, av), "slurm", "cleanup", "--job", job, "--uid", uid, NULL },
		(char *[]){ PATH, sluid, NULL }, NULL, out, out, 1000 * END_SECONDS); /* squire itself gives up after 20 s */
	read_back(out, words, sizeof words);
	fclose(out);
	tell_lines(status != 0, words);
	return 0;
}
