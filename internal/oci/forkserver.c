// The fork server: a small process of the keeper that starts processes in running containers. It runs instead of the Go
// program, in a constructor, when the environment has _KURI_FORK_SERVER, and takes requests at descriptor 3.
//
// For each it forks a process A in the container's cgroup, which joins the container's namespaces, gives up what the
// process that was asked for is not to have, and forks B, which becomes it. Both are children of the keeper
// (CLONE_PARENT). A stays in the keeper's PID namespace, where no process of the container can reach it. B can be reached,
// and traced by who has CAP_SYS_PTRACE; so it is born with nothing of the host's: its user, groups, capabilities, root and
// working directory are those of the process, its memory has this request alone, its program is the keeper's sealed copy,
// and its descriptors are its stdio, the socket over which it tells errors, and
// a copier's sealed program; its exec closes the latter two. The one exception is
// CAP_SYS_ADMIN, which loading a filter takes without no_new_privs. A does that, and forks B under the filter; but where
// the filter forbids what comes then, B does it, and has the capability until then.
//
// Requests are written by exec.go, which has the same order of fields.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif

enum { TALK = 3, INIT = 4, KEEPER = 5, SPARE = 6, SELF = 7, PROGRAM = 8, MOST = 32 }; // descriptors of A; a bound on the server's
enum { IN_CGROUP = 1, HAS_STDIN = 2, TERMINAL = 4, COPIER = 8, CONTAINER = 16, NEW_PIDS = 32 }; // a request's first byte
enum { NNP = 1, CAPS = 2, NO_HOME = 4, UMASK = 8, OOM = 16, OWNER = 32, USERNS = 64 }; // its switches

// The steps that can fail, by the numbers that exec.go knows.
enum {
	READ = 1, CGROUP, OOM_SCORE, LABEL, GIVE, JOIN, FORK, ROOT, KEYRING, LIMIT, DIRECTORY, BOUND, USER, CAPABILITY,
	FILTER, SEARCH, EXEC, CONSOLE, MOUNT, DEVICE, PIVOT, MASK, NAMESPACE, IDMAP,
};

static void tell(const void *message, size_t n)
{
	if (write(TALK, message, n) < 0)
		_exit(255); // the keeper is gone, or the container's filter forbids it
}

static uint32_t c_mount; // of a container, the mount that is being made, by its number

static void fail(int step)
{
	int32_t message[] = {'E', step, errno, c_mount};

	tell(message, sizeof(message));
	_exit(255);
}

static void must(int ok, int step)
{
	if (!ok)
		fail(step);
}

// The request, and how far it has been read.
static char *at, *end;

static void *take(size_t n)
{
	char *p = at;

	errno = EBADMSG;
	must(n <= (size_t)(end - at), READ);
	at += n;
	return p;
}

static uint32_t u32(void)
{
	uint32_t v;

	memcpy(&v, take(sizeof(v)), sizeof(v));
	return v;
}

static uint64_t u64(void)
{
	uint64_t v;

	memcpy(&v, take(sizeof(v)), sizeof(v));
	return v;
}

// count is how many of something follow, of which each takes a byte at least.
static uint32_t count(void)
{
	uint32_t n = u32();

	errno = EBADMSG;
	must(n <= (size_t)(end - at), READ);
	return n;
}

static char *string(void)
{
	uint32_t n = u32(); // with the NUL at its end
	char *s = take(n);

	must(n > 0 && s[n - 1] == 0, READ);
	return s;
}

// strings has room for one more before the NULL at its end.
static char **strings(uint32_t *n)
{
	char **all;

	*n = count();
	all = calloc((size_t)*n + 2, sizeof(char *));
	must(all != NULL, READ);
	for (uint32_t i = 0; i < *n; i++)
		all[i] = string();
	return all;
}

static struct {
	unsigned char flags; // the first byte
	uint32_t namespaces, switches, uid, gid, umask, owner_uid, owner_gid;
	int32_t oom;
	uint64_t bounding, effective, permitted, inheritable, ambient;
	uint32_t ngroups, nlimits, ncgroups, nenv, nargs, filter_flags, filter_early, nfilter, width, height;
	gid_t *groups;
	struct { uint32_t type; struct rlimit to; } *limits;
	char *keyring, *apparmor, *selinux, *cwd, *own_cgroup, **cgroups, **env, **args;
	struct sock_filter *filter;
} r;

static void read_container(void);

static void read_request(void)
{
	uint32_t size;
	ssize_t n;

	must(recv(TALK, &size, sizeof(size), 0) == sizeof(size), READ);
	at = malloc(size);
	must(at != NULL, READ);
	for (end = at; end < at + size; end += n) {
		n = recv(TALK, end, at + size - end, 0);
		must(n > 0, READ);
	}
	r.namespaces = u32();
	r.switches = u32();
	r.uid = u32();
	r.gid = u32();
	r.width = u32();
	r.height = u32();
	r.umask = u32();
	r.oom = (int32_t)u32();
	r.owner_uid = u32();
	r.owner_gid = u32();
	r.bounding = u64();
	r.effective = u64();
	r.permitted = u64();
	r.inheritable = u64();
	r.ambient = u64();
	r.ngroups = count();
	r.groups = calloc((size_t)r.ngroups + 1, sizeof(gid_t));
	must(r.groups != NULL, READ);
	for (uint32_t i = 0; i < r.ngroups; i++)
		r.groups[i] = u32();
	r.nlimits = count();
	r.limits = calloc((size_t)r.nlimits + 1, sizeof(*r.limits));
	must(r.limits != NULL, READ);
	for (uint32_t i = 0; i < r.nlimits; i++) {
		r.limits[i].type = u32();
		r.limits[i].to.rlim_cur = u64();
		r.limits[i].to.rlim_max = u64();
	}
	r.keyring = string();
	r.apparmor = string();
	r.selinux = string();
	r.cwd = string();
	r.env = strings(&r.nenv);
	r.cgroups = strings(&r.ncgroups);
	r.filter_flags = u32();
	r.filter_early = u32();
	r.nfilter = count();
	r.filter = calloc((size_t)r.nfilter + 1, sizeof(*r.filter));
	must(r.filter != NULL, READ);
	memcpy(r.filter, take(r.nfilter * sizeof(*r.filter)), r.nfilter * sizeof(*r.filter));
	r.args = strings(&r.nargs);
	r.own_cgroup = string();
	if (r.flags & CONTAINER)
		read_container();
	errno = EBADMSG;
	must(r.nargs > 0 && at == end, READ);
}

static int put(const char *file, const char *text)
{
	int fd = open(file, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return 0;
	n = write(fd, text, strlen(text));
	close(fd);
	return n == (ssize_t)strlen(text);
}

// --- A, in the host's namespaces ---

// Writing "0" moves the writer, without the lock that moving any other process takes.
static void join_cgroups(void)
{
	static unsigned char all_cpus[8192];

	for (uint32_t i = 0; i < r.ncgroups; i++)
		must(put(r.cgroups[i], "0"), CGROUP);
	must(!*r.own_cgroup || put(r.own_cgroup, "0"), CGROUP);
	memset(all_cpus, 0xff, sizeof(all_cpus)); // the kernel takes what the cpuset allows
	syscall(SYS_sched_setaffinity, 0, sizeof(all_cpus), all_cpus);
}

static void set_oom_score(void)
{
	char text[16];

	if (!(r.switches & OOM))
		return;
	snprintf(text, sizeof(text), "%d", r.oom);
	must(put("/proc/self/oom_score_adj", text), OOM_SCORE);
}

// The label for B's exec is one of A's own, which B inherits: so it is written into the host's /proc, not into what the
// container has at that place.
static void set_labels(void)
{
	if (*r.apparmor) {
		char *text;

		must(asprintf(&text, "exec %s", r.apparmor) >= 0, LABEL);
		must(put("/proc/self/attr/apparmor/exec", text) || put("/proc/self/attr/exec", text), LABEL);
	}
	if (*r.selinux) {
		must(put("/proc/self/attr/keycreate", r.selinux), LABEL);
		must(put("/proc/self/attr/exec", r.selinux), LABEL);
	}
}

// The user of the process owns its pipes, so that it can open /dev/stdout. In the user namespace nobody could give them.
static void give_stdio(void)
{
	struct stat st;

	for (int fd = 0; r.switches & OWNER && fd < 3; fd++) {
		must(fstat(fd, &st) == 0, GIVE);
		if (S_ISFIFO(st.st_mode))
			must(fchown(fd, r.owner_uid, r.owner_gid) == 0, GIVE);
	}
}

// Limits are raised here, where that is permitted, and lowered by B.
static void raise_limits(void)
{
	for (uint32_t i = 0; i < r.nlimits; i++) {
		struct rlimit now;

		must(getrlimit(r.limits[i].type, &now) == 0, LIMIT);
		if (r.limits[i].to.rlim_max > now.rlim_max) {
			now.rlim_max = r.limits[i].to.rlim_max;
			must(setrlimit(r.limits[i].type, &now) == 0, LIMIT);
		}
	}
}

// open_ptmx opens what makes terminals in the container's devpts. The container prepares that path, so what is found there
// is looked at before it is opened, and it is opened by the descriptor.
static int open_ptmx(void)
{
	struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS};
	struct stat st;
	struct statfs fs;
	char link[32];
	int ptmx, handle = syscall(SYS_openat2, AT_FDCWD, "/dev/pts/ptmx", &how, sizeof(how));

	must(handle >= 0 && fstat(handle, &st) == 0 && fstatfs(handle, &fs) == 0, CONSOLE);
	errno = ENODEV;
	must(fs.f_type == DEVPTS_SUPER_MAGIC && S_ISCHR(st.st_mode) && st.st_rdev == makedev(5, 2), CONSOLE);
	snprintf(link, sizeof(link), "fd/%d", handle);
	ptmx = openat(SELF, link, O_RDWR | O_NOCTTY | O_CLOEXEC);
	must(ptmx >= 0, CONSOLE);
	close(handle);
	return ptmx;
}

static void send_console(int ptmx)
{
	char control[CMSG_SPACE(sizeof(int))] = {0}, c = 'C';
	struct iovec body = {&c, 1};
	struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(head), &ptmx, sizeof(int));
	must(sendmsg(KEEPER, &message, MSG_NOSIGNAL) == 1, CONSOLE);
}

// make_console makes a terminal for the standard streams. It belongs to the user of the process; the group and the mode
// are what the container's devpts gives.
static void make_console(void)
{
	struct winsize size = {.ws_col = r.width, .ws_row = r.height};
	const int unlocked = 0;
	int ptmx, peer;

	if (!(r.flags & TERMINAL))
		return;
	ptmx = open_ptmx();
	must(ioctl(ptmx, TIOCSPTLCK, &unlocked) == 0, CONSOLE);
	peer = ioctl(ptmx, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	must(peer >= 0, CONSOLE);
	must(!r.width || !r.height || ioctl(ptmx, TIOCSWINSZ, &size) == 0, CONSOLE);
	must(fchown(peer, r.uid, -1) == 0 || errno == EPERM || errno == EROFS, CONSOLE);
	for (int fd = 0; fd < 3; fd++)
		must(dup2(peer, fd) == fd, CONSOLE);
	send_console(ptmx);
	close(peer);
	close(ptmx);
	close(KEEPER);
}

// hold_self keeps this process's directory in the host's /proc as SELF: the container's may say anything.
static void hold_self(void)
{
	int fd = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);

	must(fd >= 0, JOIN);
	if (fd != SELF)
		must(dup3(fd, SELF, O_CLOEXEC) == SELF && close(fd) == 0, JOIN);
}

// join enters the container's namespaces, in which there is no A.
static void join(void)
{
	hold_self();
	must(setns(INIT, r.namespaces) == 0, JOIN);
	must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0, JOIN); // the new user namespace may have changed it
	close(INIT);
}

// --- A, in all of the container's namespaces but that of processes ---

static void become_root(void)
{
	if (!(r.switches & USERNS))
		return;
	must(setresgid(0, 0, 0) == 0 && setresuid(0, 0, 0) == 0, ROOT);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

static void join_keyring(void)
{
	const int join_session_keyring = 1;

	must(syscall(SYS_keyctl, join_session_keyring, r.keyring) >= 0 || errno == ENOSYS, KEYRING);
}

// home is what /etc/passwd of the container has for the user, "/" when it has none.
static char *home(void)
{
	static char line[4096];
	struct stat st;
	char *found = NULL;
	FILE *f = NULL;
	int fd = open("/etc/passwd", O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
		f = fdopen(fd, "r");
	while (f && !found && fgets(line, sizeof(line), f)) {
		char *field = line, *fields[7] = {NULL}, *tail;
		int n = 0;

		line[strcspn(line, "\n")] = 0;
		while (field && n < 7)
			fields[n++] = strsep(&field, ":");
		if (n < 3 || *fields[0] == 0 || *fields[0] == '#' || *fields[2] == 0)
			continue;
		if (strtoul(fields[2], &tail, 10) == r.uid && *tail == 0)
			found = fields[5] ? fields[5] : "";
	}
	if (f)
		fclose(f);
	else if (fd >= 0)
		close(fd);
	return found ? found : "/";
}

static void set_home(void)
{
	if (r.switches & NO_HOME)
		must(asprintf(&r.env[r.nenv], "HOME=%s", home()) >= 0, READ);
}

static void drop_bounding(void)
{
	for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (!(r.bounding >> cap & 1))
			must(prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0, BOUND);
}

static int set_capability_sets(uint64_t more)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2];

	for (int i = 0; i < 2; i++) {
		data[i].effective = (r.effective | more) >> (32 * i);
		data[i].permitted = (r.permitted | more) >> (32 * i);
		data[i].inheritable = r.inheritable >> (32 * i);
	}
	return syscall(SYS_capset, &header, data);
}

// Without no_new_privs a filter is for the privileged to load: filter_takes is what that takes beside what the process has.
static uint64_t filter_takes(void)
{
	return r.nfilter && !(r.switches & NNP) ? 1ULL << CAP_SYS_ADMIN : 0;
}

static void load_filter(void)
{
	struct sock_fprog program = {.len = r.nfilter, .filter = r.filter};

	if (r.nfilter)
		must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, r.filter_flags, &program) == 0, FILTER);
}

static void load_privileged_filter(void)
{
	load_filter();
	must(!(r.switches & CAPS) || set_capability_sets(0) == 0, CAPABILITY);
}

static void set_capabilities(void)
{
	must(set_capability_sets(filter_takes()) == 0, CAPABILITY);
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	for (int cap = 0; cap < 64; cap++)
		if (r.ambient >> cap & 1)
			prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0); // without what it needs, it is not raised
}

// Where no capabilities were asked for they are what the change of the user leaves, and what the filter takes.
static void keep_capabilities(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2];

	must(syscall(SYS_capget, &header, data) == 0, CAPABILITY);
	for (int i = 0; i < 2; i++)
		data[i].effective |= (data[i].permitted & filter_takes() >> (32 * i));
	must(syscall(SYS_capset, &header, data) == 0, CAPABILITY);
}

static void set_user(void)
{
	char setgroups_file[8] = "";
	int fd;

	// A user namespace can forbid setgroups for good; its processes have no other groups then.
	if (r.switches & USERNS) {
		fd = openat(SELF, "setgroups", O_RDONLY | O_CLOEXEC);
		must(fd >= 0 && read(fd, setgroups_file, sizeof(setgroups_file) - 1) > 0, USER);
		close(fd);
	}
	if (strncmp(setgroups_file, "deny", 4) != 0)
		must(setgroups(r.ngroups, r.groups) == 0, USER);
	must(setgid(r.gid) == 0, USER); // all three of them, for the privileged
	must(setuid(r.uid) == 0, USER);
}

// verify_cwd makes sure that the working directory is below the root (CVE-2024-21626).
static void verify_cwd(void)
{
	static char path[4096 + 16];

	must(syscall(SYS_getcwd, path, sizeof(path)) > 0, DIRECTORY);
	errno = EXDEV;
	must(path[0] == '/', DIRECTORY); // "(unreachable)/…" otherwise
}

static void drop_privileges(void)
{
	int entered = chdir(r.cwd) == 0;

	must(entered || errno == EACCES || errno == EPERM, DIRECTORY);
	set_home();
	if (r.switches & CAPS)
		drop_bounding();
	must(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0, CAPABILITY);
	set_user();
	if (!entered) // a directory that only the user may enter
		must(chdir(r.cwd) == 0, DIRECTORY);
	verify_cwd();
	must(prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) == 0, CAPABILITY);
	if (r.switches & CAPS)
		set_capabilities();
	else
		keep_capabilities();
	must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0, USER); // the new user has changed it
}

static void become(void);

// hold_program keeps this program's sealed copy for a copier, which is to run from it.
static void hold_program(void)
{
	int fd;

	if (!(r.flags & COPIER))
		return;
	fd = open("/proc/self/exe", O_PATH | O_CLOEXEC);
	must(fd >= 0, SEARCH);
	if (fd != PROGRAM) {
		must(dup3(fd, PROGRAM, O_CLOEXEC) == PROGRAM, SEARCH);
		close(fd);
	}
}

static void enter(void)
{
	int32_t message[] = {'P', 0};

	// 1. What takes the host's files and privileges.
	read_request();
	join_cgroups();
	set_oom_score();
	set_labels();
	give_stdio();
	raise_limits();
	hold_program();

	// 2. Into the container, where all is as for its own processes.
	join();
	become_root();
	make_console();
	join_keyring();
	if (r.switches & NNP)
		must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, CAPABILITY);
	umask(r.switches & UMASK ? r.umask : 022);
	drop_privileges();
	close(SELF);
	if (filter_takes() && r.filter_early)
		load_privileged_filter();

	// 3. Among its processes. (Filters know the arguments of the old call.)
	message[1] = syscall(SYS_clone, CLONE_PARENT, 0, 0, 0, 0);
	must(message[1] >= 0, FORK);
	if (message[1] == 0)
		become();
	tell(message, sizeof(message));
	_exit(0);
}

// --- B, in the container ---


static int executable(const char *file)
{
	struct stat st;

	if (stat(file, &st) != 0)
		return 0;
	if (S_ISDIR(st.st_mode)) {
		errno = EISDIR;
		return 0;
	}
	if (faccessat(AT_FDCWD, file, X_OK, AT_EACCESS) == 0)
		return 1;
	return errno == EPERM && st.st_mode & 0111; // the container's filter does not know the call
}

// program is the file to execute, by the PATH that the process will have. A hit in a relative directory is none.
static char *program(void)
{
	char *path = "", *dir, *file;

	if (strchr(r.args[0], '/')) {
		must(executable(r.args[0]), SEARCH);
		return r.args[0];
	}
	for (char **e = r.env; *e; e++)
		if (strncmp(*e, "PATH=", 5) == 0)
			path = strdup(*e + 5);
	while (path && (dir = strsep(&path, ":"))) {
		if (*dir != '/' || asprintf(&file, "%s/%s", dir, r.args[0]) < 0)
			continue;
		if (executable(file))
			return file;
	}
	errno = ENOENT;
	fail(SEARCH);
	return NULL;
}

static void lower_limits(void)
{
	for (uint32_t i = 0; i < r.nlimits; i++)
		must(setrlimit(r.limits[i].type, &r.limits[i].to) == 0, LIMIT);
}

// wait_at_start_line says that only the exec is left to do, and returns when a byte comes from the other end. When every copy of
// that end is closed the process exits, and has executed nothing.
static void wait_at_start_line(void)
{
	int32_t ready[] = {'R', 0};
	char byte;
	ssize_t n;

	tell(ready, sizeof(ready));
	while ((n = read(TALK, &byte, 1)) < 0 && errno == EINTR)
		;
	if (n != 1)
		_exit(255);
}

// The copier is copy.c; the container's environment is none of its.
static char *const copier_env[] = {"_KURI_COPY=1", NULL};

static void become(void)
{
	char *file;

	setsid();
	must(!(r.flags & TERMINAL) || ioctl(0, TIOCSCTTY, 0) == 0, CONSOLE);
	lower_limits();
	// With no_new_privs a filter comes as late as can be. Where it could not come early, what is done between it and the
	// exec takes no system call that libcontainer does not make there: a filter may have no other.
	if (filter_takes() && !r.filter_early)
		load_privileged_filter();
	file = r.flags & COPIER ? "" : program();
	wait_at_start_line();
	if (!filter_takes())
		load_filter();
	if (r.flags & COPIER)
		syscall(SYS_execveat, PROGRAM, file, r.args, copier_env, AT_EMPTY_PATH);
	else
		execve(file, r.args, r.env);
	fail(EXEC);
}

#include "containerinit.h"

// --- the server ---

static pid_t clone_process(uint64_t flags, int cgroup)
{
	struct clone_args args;

	memset(&args, 0, sizeof(args));
	args.flags = CLONE_PARENT | flags;
	args.cgroup = cgroup;
	return syscall(SYS_clone3, &args, sizeof(args));
}

// arrange gives the descriptors of a request, which came in this order and have the numbers from 4 on, their places. With
// a terminal the standard streams are the server's, /dev/null, until it is there.
static void arrange(const int *fds)
{
	int n = 0, spare = KEEPER;

	must(dup3(fds[n++], TALK, O_CLOEXEC) == TALK, READ);
	must(dup3(fds[n++], INIT, O_CLOEXEC) == INIT, READ);
	if (r.flags & TERMINAL) {
		must(dup3(fds[n++], KEEPER, O_CLOEXEC) == KEEPER, READ);
		spare = SPARE;
	} else {
		must(dup2(fds[n++], 1) == 1 && dup2(fds[n++], 2) == 2, READ);
	}
	if (r.flags & HAS_STDIN)
		must(dup2(fds[n++], 0) == 0, READ);
	for (int fd = spare; fd < MOST; fd++)
		close(fd);
}

// descriptors is how many come with a request.
static int descriptors(int joins)
{
	return (r.flags & TERMINAL ? 3 : 4) + !!(r.flags & HAS_STDIN) + !!(r.flags & IN_CGROUP) + (r.flags & CONTAINER ? 1 + joins : 0);
}

static void answer(int sock)
{
	char control[CMSG_SPACE(20 * sizeof(int))];
	unsigned char head[2]; // flags, and how many namespaces a container joins
	struct iovec body = {head, sizeof(head)};
	struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct cmsghdr *first;
	ssize_t got;
	int fds[20], n, into, new_pids;
	pid_t pid;

	while ((got = recvmsg(sock, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR)
		;
	if (got <= 0)
		_exit(0);
	first = CMSG_FIRSTHDR(&message);
	n = first ? (first->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
	if (n)
		memcpy(fds, CMSG_DATA(first), n * sizeof(int));
	r.flags = head[0];
	into = r.flags & IN_CGROUP;
	new_pids = r.flags & NEW_PIDS;
	if (got == sizeof(head) && head[1] <= JOINED_MAX && n == descriptors(head[1])) {
		pid = clone_process((into ? CLONE_INTO_CGROUP : 0) | (new_pids ? CLONE_NEWPID : 0), into ? fds[n - 1] : 0);
		if (pid == 0 && r.flags & CONTAINER) {
			arrange_container(fds, n - !!into, head[1]);
			read_request();
			begin_container();
		}
		if (pid == 0) {
			arrange(fds);
			enter();
		}
		if (pid < 0) {
			int32_t failed[] = {'E', FORK, errno};

			send(fds[0], failed, sizeof(failed), MSG_NOSIGNAL);
		} else {
			int32_t born[] = {'A', pid};

			send(fds[0], born, sizeof(born), MSG_NOSIGNAL);
		}
	}
	while (n > 0)
		close(fds[--n]);
}

__attribute__((constructor)) static void kuri_fork_server(void)
{
	const int sock = TALK;

	if (getenv("_KURI_FORK_SERVER") == NULL)
		return;
	prctl(PR_SET_NAME, "kuri-forkserver", 0, 0, 0);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	for (int fd = TALK + 1; fd < MOST; fd++)
		close(fd);
	syscall(SYS_close_range, MOST, ~0U, 0); // what the starter of the keeper has left open
	for (;;)
		answer(sock);
}
