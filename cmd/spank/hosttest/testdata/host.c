/*
 * host.c - a stand-in for srun and slurmstepd that loads the plugin, for what a real Slurm cannot easily be made to do.
 *
 *   usage: host PLUGIN CONTEXT TASKS UID ARGUMENT OPTION… -- COMMAND…
 *
 * CONTEXT is local, allocator, remote, or vm: remote as Slurm 24.05 and newer do it with a private /tmp, where
 * user_init and task_exit run in processes that share the memory and not the descriptors. A step without tasks ends before
 * user_init, as one does whose files of output Slurm cannot make. ARGUMENT is the plugin's, an
 * OPTION is NAME=VALUE. Locally, what the plugin leaves in SLURM_SQUIRE_OPTIONS is printed. Remotely, the tasks run
 * COMMAND, and "task N: STATUS" is printed for each. With the CONTEXT epilog a job has ended.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <slurm/spank.h>

static spank_context_t context;
static struct spank_option *registered[64];
static int nregistered;
static char **job_env, **command;
static uint32_t tasks, task;
static uid_t uid;
static gid_t groups[1];
static int status;
static void *plugin;
static char *arguments[2];

spank_context_t spank_context(void)
{
	return context;
}

spank_err_t spank_option_register(spank_t spank, struct spank_option *option)
{
	(void)spank;
	if (nregistered == 64)
		return ESPANK_NOSPACE;
	registered[nregistered++] = option;
	return ESPANK_SUCCESS;
}

spank_err_t spank_get_item(spank_t spank, spank_item_t item, ...)
{
	va_list ap;
	uint32_t n = 0;

	(void)spank;
	va_start(ap, item);
	switch ((int)item) {
	case S_JOB_ENV:
		*va_arg(ap, char ***) = job_env;
		break;
	case S_JOB_SUPPLEMENTARY_GIDS:
		*va_arg(ap, gid_t **) = groups;
		*va_arg(ap, int *) = 1;
		break;
	case S_JOB_ARGV:
		va_end(ap);
		return ESPANK_NOT_AVAIL;
	default:
		n = item == S_JOB_UID || item == S_JOB_GID ? uid : item == S_JOB_ID ? 7 : item == S_JOB_LOCAL_TASK_COUNT ? tasks :
			item == S_TASK_ID || item == S_TASK_GLOBAL_ID ? task : item == S_TASK_EXIT_STATUS ? (uint32_t)status : 1;
		*va_arg(ap, uint32_t *) = n;
	}
	va_end(ap);
	return ESPANK_SUCCESS;
}

spank_err_t spank_setenv(spank_t spank, const char *name, const char *value, int overwrite)
{
	(void)spank;
	return setenv(name, value, overwrite) == 0 ? ESPANK_SUCCESS : ESPANK_BAD_ARG;
}

spank_err_t spank_unsetenv(spank_t spank, const char *name)
{
	(void)spank;
	return unsetenv(name) == 0 ? ESPANK_SUCCESS : ESPANK_BAD_ARG;
}

static void say(const char *kind, const char *format, va_list ap)
{
	char line[4096];
	int n = snprintf(line, sizeof line, "%s", kind);

	n += vsnprintf(line + n, sizeof line - (size_t)n - 1, format, ap);
	n = n < (int)sizeof line - 2 ? n : (int)sizeof line - 2;
	line[n] = '\n';
	(void)!write(2, line, (size_t)n + 1);
}

void slurm_error(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	say("error: ", format, ap);
	va_end(ap);
}

void slurm_spank_log(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	say("", format, ap);
	va_end(ap);
}

static int call(const char *name)
{
	int (*f)(spank_t, int, char **) = (int (*)(spank_t, int, char **))dlsym(plugin, name);

	return f ? f(NULL, *arguments ? 1 : 0, arguments) : 0;
}

static int call_child(void *name)
{
	if (!strcmp(name, "slurm_spank_user_init") && seteuid(uid) < 0)
		_exit(2);
	_exit(call(name) != 0);
}

/* call_apart calls as Slurm does where jobs have a /tmp of their own. */
static void call_apart(const char *name)
{
	static char stack[1 << 20] __attribute__((aligned(64)));
	pid_t pid = clone(call_child, stack + sizeof stack, CLONE_VM | SIGCHLD, (void *)name);

	if (pid < 0 || waitpid(pid, NULL, 0) != pid)
		perror("host: clone");
}

static void give(char *option)
{
	char *value = strchr(option, '=');

	*value++ = 0;
	for (int i = 0; i < nregistered; i++) {
		if (!strcmp(registered[i]->name, option)) {
			if (registered[i]->cb(registered[i]->val, *value ? value : NULL, context == S_CTX_REMOTE) != 0)
				exit(3);
			return;
		}
	}
	fprintf(stderr, "host: no option %s\n", option);
	exit(2);
}

static void run_task(void)
{
	if (getuid() == 0 && (setgroups(1, groups) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0))
		_exit(99);
	if (call("slurm_spank_task_init") != 0)
		_exit(98);
	execvp(*command, command);
	_exit(97);
}

static void handler(int signal)
{
	(void)signal;
}

static int run_step(int apart)
{
	pid_t pids[64] = { 0 };

	signal(SIGTERM, handler);
	signal(SIGPIPE, SIG_IGN);
	if (tasks == 0)
		return call("slurm_spank_exit"), 0;
	if (apart) {
		call_apart("slurm_spank_user_init");
	} else {
		if (seteuid(uid) < 0)
			return 2;
		call("slurm_spank_user_init");
		if (seteuid(getuid()) < 0)
			return 2;
	}
	for (task = 0; task < tasks; task++) {
		if ((pids[task] = fork()) == 0)
			run_task();
	}
	for (uint32_t i = 0; i < tasks; i++) {
		pid_t pid = wait(&status);
		for (task = 0; pids[task] != pid; task++)
			if (task == tasks)
				return 4; /* a child that Slurm would not know */
		printf("task %u: %d\n", task, WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
		fflush(stdout);
		apart ? call_apart("slurm_spank_task_exit") : (void)call("slurm_spank_task_exit");
	}
	call("slurm_spank_exit");
	return 0;
}

int main(int argc, char **argv)
{
	int apart = argc > 2 && !strcmp(argv[2], "vm"), i;

	if (argc < 6)
		return 2;
	context = !strcmp(argv[2], "local") ? S_CTX_LOCAL : !strcmp(argv[2], "allocator") ? S_CTX_ALLOCATOR : S_CTX_REMOTE;
	if (!strcmp(argv[2], "epilog"))
		context = S_CTX_JOB_SCRIPT;
	tasks = (uint32_t)atoi(argv[3]);
	groups[0] = uid = (uid_t)atoi(argv[4]);
	arguments[0] = argv[5];
	job_env = environ;
	if (!(plugin = dlopen(argv[1], RTLD_NOW))) {
		fprintf(stderr, "host: %s\n", dlerror());
		return 2;
	}
	if (tasks > 64 || call("slurm_spank_init") != 0)
		return 2;
	if (context == S_CTX_JOB_SCRIPT)
		return call("slurm_spank_job_epilog");
	for (i = 6; i < argc && strcmp(argv[i], "--"); i++)
		give(argv[i]);
	command = argv + i + 1;
	if (call("slurm_spank_init_post_opt") != 0)
		return 2;
	if (context == S_CTX_REMOTE)
		return run_step(apart);
	printf("%s\n", getenv("SLURM_SQUIRE_OPTIONS") ? getenv("SLURM_SQUIRE_OPTIONS") : "");
	return 0;
}
