// The fork server: a small child process of the keeper that starts processes in running containers.
// It runs instead of the Go program, in a constructor, if the environment has _KURI_FORK_SERVER. It
// receives requests on descriptor 3.
//
// For each request it forks a process A in the container's cgroup. A joins the container's
// namespaces, drops the privileges that the requested process must not have, and forks B, which
// becomes that process. Both are children of the keeper (CLONE_PARENT). A stays in the keeper's PID
// namespace, so no process of the container can reach it. B is in the container's: a process there
// with CAP_SYS_PTRACE can trace it. So B starts with nothing of the host's. Its user, groups,
// capabilities, root and working directory are those of the requested process. Its memory has only
// this request, and its program is the keeper's, sealed. Its descriptors are its stdio, the
// socket for errors and, for a copier, the sealed program; its exec closes the latter two.
//
// The one exception is CAP_SYS_ADMIN, which loading a filter requires without no_new_privs. A loads
// the filter and forks B under it. If the filter forbids a later step, B loads it instead, and has
// the capability until then.
//
// It also forks the processes that create user namespaces.
//
// exec.go writes the requests, with the fields in the same order.
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

// Descriptors of A. All descriptors of the server are below MOST.
enum { TALK = 3, INIT = 4, KEEPER = 5, SPARE = 6, SELF = 7, PROGRAM = 8, MOST = 32 };
enum { TIMER_SLACK_NS = 50000 }; // the kernel's default
enum { IN_CGROUP = 1, HAS_STDIN = 2, TERMINAL = 4, COPIER = 8, CONTAINER = 16, NEW_PIDS = 32, NEW_USER = 64 }; // a request's flags
enum { OWNS_NETWORK = 1, OWNS_IPC = 2, OWNS_UTS = 4 }; // the second byte with NEW_USER
enum { NNP = 1, CAPS = 2, NO_HOME = 4, UMASK = 8, OOM = 16, OWNER = 32, USERNS = 64 }; // its switches

// The steps that can fail. forkserver.go has the same numbers.
enum {
	READ = 1, CGROUP, OOM_SCORE, LABEL, GIVE, JOIN, FORK, ROOT, KEYRING, LIMIT, DIRECTORY, BOUND, USER, CAPABILITY,
	FILTER, SEARCH, EXEC, CONSOLE, MOUNT, DEVICE, PIVOT, MASK, NAMESPACE, IDMAP,
};

static void tell(const void *message, size_t n)
{
	if (write(TALK, message, n) < 0)
		_exit(255); // the keeper has ended, or the container's filter forbids the write
}

static uint32_t c_mount; // number of the mount in progress, of a container

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

// The request: the next byte to read, and its end.
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

// count reads the number of items that follow, of at least one byte each.
static uint32_t count(void)
{
	uint32_t n = u32();

	errno = EBADMSG;
	must(n <= (size_t)(end - at), READ);
	return n;
}

static char *string(void)
{
	uint32_t n = u32(); // including the terminating NUL
	char *s = take(n);

	must(n > 0 && s[n - 1] == 0, READ);
	return s;
}

// strings returns an array with room for one more entry before the terminating NULL.
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

// A process that writes "0" moves itself, without the lock that moving another process takes.
static void join_cgroups(void)
{
	static unsigned char all_cpus[8192];

	for (uint32_t i = 0; i < r.ncgroups; i++)
		must(put(r.cgroups[i], "0"), CGROUP);
	must(!*r.own_cgroup || put(r.own_cgroup, "0"), CGROUP);
	memset(all_cpus, 0xff, sizeof(all_cpus)); // the kernel limits it to the cpuset
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

// The label for B's exec is an attribute of A, which B inherits. So it is written to the host's
// /proc, not to the container's, which may be anything.
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

// The user of the process gets its pipes, to be able to open /dev/stdout. In the user namespace, A
// could not chown them.
static void give_stdio(void)
{
	struct stat st;

	for (int fd = 0; r.switches & OWNER && fd < 3; fd++) {
		must(fstat(fd, &st) == 0, GIVE);
		if (S_ISFIFO(st.st_mode))
			must(fchown(fd, r.owner_uid, r.owner_gid) == 0, GIVE);
	}
}

// A may still raise limits. B lowers them.
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

// open_ptmx opens the ptmx of the container's devpts. The container controls that path, so the file
// is checked before it is opened, and is opened through the checked descriptor.
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

// make_console creates a terminal for the standard streams. The user of the process owns it; group
// and mode are the defaults of the container's devpts.
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

// hold_self opens this process's directory in the host's /proc as SELF, since the container's /proc
// cannot be trusted.
static void hold_self(void)
{
	int fd = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);

	must(fd >= 0, JOIN);
	if (fd != SELF)
		must(dup3(fd, SELF, O_CLOEXEC) == SELF && close(fd) == 0, JOIN);
}

// join enters the container's namespaces, except the PID namespace: that applies only to children
// of A.
static void join(void)
{
	hold_self();
	must(setns(INIT, r.namespaces) == 0, JOIN);
	must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0, JOIN); // entering a user namespace may have changed it
	close(INIT);
}

// --- A, in the container's namespaces except the PID namespace ---

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

// home returns the user's home directory from /etc/passwd of the container, or "/" if it has none.
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

// Loading a filter requires CAP_SYS_ADMIN unless no_new_privs is set. filter_takes returns that
// capability if it is needed in addition to those of the process.
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
			prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0); // fails unless it is permitted and inheritable
}

// Without requested capabilities, the process keeps those that the change of user leaves, and the
// one to load the filter.
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

	// A user namespace can deny setgroups permanently. Its processes then have no supplementary
	// groups.
	if (r.switches & USERNS) {
		fd = openat(SELF, "setgroups", O_RDONLY | O_CLOEXEC);
		must(fd >= 0 && read(fd, setgroups_file, sizeof(setgroups_file) - 1) > 0, USER);
		close(fd);
	}
	if (strncmp(setgroups_file, "deny", 4) != 0)
		must(setgroups(r.ngroups, r.groups) == 0, USER);
	must(setgid(r.gid) == 0, USER); // sets real, effective and saved id, with CAP_SETGID
	must(setuid(r.uid) == 0, USER);
}

// verify_cwd checks that the working directory is below the root (CVE-2024-21626).
static void verify_cwd(void)
{
	static char path[4096 + 16];

	must(syscall(SYS_getcwd, path, sizeof(path)) > 0, DIRECTORY);
	errno = EXDEV;
	must(path[0] == '/', DIRECTORY); // otherwise it begins with "(unreachable)"
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
	if (!entered) // only the user may enter the directory
		must(chdir(r.cwd) == 0, DIRECTORY);
	verify_cwd();
	must(prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) == 0, CAPABILITY);
	if (r.switches & CAPS)
		set_capabilities();
	else
		keep_capabilities();
	must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0, USER); // the change of user has changed it
}

static void become(void);

// hold_program opens this program, which is sealed, as PROGRAM, for a copier to run.
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

	// 1. Steps that need the host's files and privileges.
	read_request();
	join_cgroups();
	set_oom_score();
	set_labels();
	give_stdio();
	raise_limits();
	hold_program();

	// 2. Steps in the container, with its view of files and ids.
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

	// 3. The fork into its PID namespace. (Filters can check the arguments of clone, but not of
	// clone3.)
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
	return errno == EPERM && st.st_mode & 0111; // the container's filter does not allow the call
}

// program returns the path of the file to execute, searched in the PATH of the new process.
// Relative directories in it are skipped.
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

// wait_at_start_line reports that only the exec is left, and returns when the other end sends a
// byte. If every copy of that end is closed, the process exits without executing anything.
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

// The copier is copy.c. It does not get the container's environment.
static char *const copier_env[] = {"_KURI_COPY=1", NULL};

static void become(void)
{
	char *file;

	setsid();
	must(!(r.flags & TERMINAL) || ioctl(0, TIOCSCTTY, 0) == 0, CONSOLE);
	lower_limits();
	// With no_new_privs the filter is loaded as late as possible. If it could not be loaded early,
	// the steps between it and the exec make only the system calls that libcontainer makes there: a
	// filter may allow no others.
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

// arrange moves the descriptors of a request, which arrive in this order with numbers from 4 on, to
// their numbers. Until a terminal is created, the standard streams are the server's, /dev/null.
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

// descriptors returns how many descriptors belong to a request.
static int descriptors(int joins)
{
	if (r.flags & NEW_USER)
		return 1;
	return (r.flags & TERMINAL ? 3 : 4) + !!(r.flags & HAS_STDIN) + !!(r.flags & IN_CGROUP) + (r.flags & CONTAINER ? 1 + joins : 0);
}

// owned returns the flags of a new user namespace, and of the namespaces that it is to own.
static uint64_t owned(int which)
{
	return CLONE_NEWUSER | (which & OWNS_NETWORK ? CLONE_NEWNET : 0) | (which & OWNS_IPC ? CLONE_NEWIPC : 0) |
	       (which & OWNS_UTS ? CLONE_NEWUTS : 0);
}

// keep_namespaces keeps the new namespaces of this process until the keeper closes its end of the
// socket.
__attribute__((noreturn)) static void keep_namespaces(int talk)
{
	char byte;

	must(dup3(talk, TALK, O_CLOEXEC) == TALK, READ);
	for (int fd = TALK + 1; fd < MOST; fd++)
		close(fd);
	while (read(TALK, &byte, 1) < 0 && errno == EINTR)
		;
	_exit(0);
}

static void answer(int sock)
{
	char control[CMSG_SPACE(20 * sizeof(int))];
	unsigned char head[2]; // flags, and the number of namespaces that a container joins, or which ones to create
	struct iovec body = {head, sizeof(head)};
	struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct cmsghdr *first;
	ssize_t got;
	int fds[20], n, into;
	uint64_t new;
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
	new = r.flags & NEW_USER ? owned(head[1]) : r.flags & NEW_PIDS ? CLONE_NEWPID : 0;
	if (got == sizeof(head) && head[1] <= JOINED_MAX && n == descriptors(head[1])) {
		pid = clone_process((into ? CLONE_INTO_CGROUP : 0) | new, into ? fds[n - 1] : 0);
		if (pid == 0 && r.flags & NEW_USER)
			keep_namespaces(fds[0]);
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
	prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0); // containers must not inherit the keeper's
	for (int fd = TALK + 1; fd < MOST; fd++)
		close(fd);
	syscall(SYS_close_range, MOST, ~0U, 0); // inherited from the keeper's starter
	for (;;)
		answer(sock);
}
