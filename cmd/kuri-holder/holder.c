// kuri-holder is the parent of the keeper. It starts another keeper when one dies, reaps the
// processes of the dead one, and holds descriptors by name, so that no container's pipe breaks and
// no socket refuses a connection.
//
//	kuri-holder --state DIR [--cgroup DIR]... -- KEEPER ARGUMENT...
//
// It does almost nothing, so it has almost no reason to die: no policy, no state of pods except
// names and process ids, one thread, one loop around poll(2). protocol.h has its requests.
//
// Descriptor 0 is the gate: the keeper starts when it reads end of file. Before that the starter
// can move this process into its cgroup or pass descriptors. With --cgroup (one for each hierarchy)
// the holder enters the cgroups itself, which avoids the kernel's delay for moving another process,
// and removes them when it exits. The first keeper inherits descriptors 1 and
// 2, on which it reports that it is ready, or its error.
//
// It exits when a keeper exits with status 0, which means that the node has no pods, and when a
// keeper fails and has left nothing to hold. It forwards SIGTERM and SIGINT to the keeper, which
// decides. On SIGHUP it restores its lock and its socket if they were removed.
//
// When the holder dies alone, the keeper executes this program in its own process, with the state
// that a holder passes to its replacement (take_over). So the parent of the containers becomes the
// holder, and starts a keeper.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "protocol.h"

#ifndef VERSION
#define VERSION "devel"
#endif

#define CGROUPS_MAX 32
#define SETTLED_MS 10000   // a keeper that has lived this long is replaced at once when it ends
#define DELAY_FIRST_MS 50  // first delay before replacing one that ended earlier; doubled each time
#define DELAY_MAX_MS 5000
#define DELAY_KILLED_MS 200 // maximum delay after SIGKILL: the keeper did not fail by itself
#define STATE_ENV "_KURI_HOLDER_STATE" // descriptor of the state for the next holder program
#define PID_ENV "_KURI_HOLDER_PID"     // tells a keeper which process started it

struct held {
	uint32_t hash;
	int fd;
	char *name;
};

struct watched {
	pid_t pid;
	int status;
	bool exited;
};

struct holder {
	char **argv;          // of this program
	char **keeper_argv;
	char *keeper_path;    // keeper_argv[0] if PROGRAM has changed it, else NULL
	char *keeper_held;    // name of the descriptor of the keeper's program; NULL: use keeper_argv[0]
	const char *state;
	pid_t pid; // ours
	const char *cgroups[CGROUPS_MAX];
	int ncgroups;

	int lock, listener, signals, gate; // gate: -1 once open
	int clients[HOLDER_CLIENTS_MAX];
	int nclients;
	struct rlimit files; // the limits at the start, for the keeper

	struct held *held;
	size_t nheld, room_held;
	struct watched *watched;
	size_t nwatched, room_watched;

	pid_t keeper; // 0: none runs
	bool started_before;
	bool replacing;     // the keeper was killed to be replaced: start another even if nothing is held
	int64_t started_ms; // of the newest keeper
	int64_t due_ms;     // when to start the next one, if keeper is 0 and the gate is open
	int64_t delay_ms;
};

// --- time and log ---

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

// open_log opens the keeper's log for appending. The keeper rotates it.
static int open_log(const struct holder *h)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/keeper.log", h->state);
	return open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
}

__attribute__((format(printf, 2, 3))) static void say(const struct holder *h, const char *format, ...)
{
	char text[512], stamp[32];
	time_t now = time(NULL);
	struct tm utc;
	va_list arguments;
	int fd = open_log(h);

	if (fd < 0)
		return; // there is nowhere else to log to
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
	dprintf(fd, "time=%s level=WARN msg=\"holder: %s\"\n", stamp, text);
	close(fd);
}

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "kuri-holder: ");
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, "\n");
	exit(1);
}

// --- descriptors by name ---

static uint32_t hash_of(const char *name, size_t n)
{
	uint32_t hash = 2166136261u; // FNV-1a

	for (size_t i = 0; i < n; i++)
		hash = (hash ^ (unsigned char)name[i]) * 16777619u;
	return hash;
}

static struct held *find(struct holder *h, const char *name, size_t n)
{
	uint32_t hash = hash_of(name, n);

	for (size_t i = 0; i < h->nheld; i++)
		if (h->held[i].hash == hash && strlen(h->held[i].name) == n && memcmp(h->held[i].name, name, n) == 0)
			return &h->held[i];
	return NULL;
}

static bool valid_name(const char *name, size_t n)
{
	if (n < 1 || n > HOLDER_NAME_MAX)
		return false;
	for (size_t i = 0; i < n; i++)
		if (name[i] < '!' || name[i] > '~')
			return false;
	return true;
}

// grow makes room for one more element and returns the array, NULL if there is no memory.
static void *grow(void *array, size_t count, size_t *room, size_t size)
{
	if (count < *room)
		return array;
	array = reallocarray(array, *room ? *room * 2 : 16, size);
	if (array)
		*room = *room ? *room * 2 : 16;
	return array;
}

// put takes ownership of fd and returns 0. On an error it returns an errno, and the caller keeps fd.
static int put(struct holder *h, const char *name, size_t n, int fd)
{
	struct held *e, *more;

	if (!valid_name(name, n))
		return EINVAL;
	e = find(h, name, n);
	if (e) {
		close(e->fd);
		e->fd = fd;
		return 0;
	}
	more = grow(h->held, h->nheld, &h->room_held, sizeof(*more));
	if (!more)
		return ENOMEM;
	h->held = more;
	e = &h->held[h->nheld];
	e->name = strndup(name, n);
	if (!e->name)
		return ENOMEM;
	e->hash = hash_of(name, n);
	e->fd = fd;
	h->nheld++;
	return 0;
}

static void drop(struct holder *h, const char *name, size_t n)
{
	struct held *e = find(h, name, n);

	if (!e)
		return;
	close(e->fd);
	free(e->name);
	*e = h->held[--h->nheld];
}

static bool in_room(const char *name, const char *room)
{
	return strncmp(name, room, strlen(room)) == 0;
}

// holds_anything reports whether a dead keeper has left anything for a successor, other than
// listening sockets and programs.
static bool holds_anything(const struct holder *h)
{
	for (size_t i = 0; i < h->nheld; i++)
		if (!in_room(h->held[i].name, "listen/") && !in_room(h->held[i].name, "program/"))
			return true;
	return h->nwatched > 0;
}

// --- processes ---

static struct watched *find_watched(struct holder *h, pid_t pid)
{
	for (size_t i = 0; i < h->nwatched; i++)
		if (h->watched[i].pid == pid)
			return &h->watched[i];
	return NULL;
}

static int watch(struct holder *h, pid_t pid)
{
	struct watched *e = find_watched(h, pid), *more;

	if (pid <= 0)
		return EINVAL;
	if (!e) {
		more = grow(h->watched, h->nwatched, &h->room_watched, sizeof(*more));
		if (!more)
			return ENOMEM;
		h->watched = more;
		e = &h->watched[h->nwatched++];
	}
	*e = (struct watched){.pid = pid};
	return 0;
}

static void forget(struct holder *h, pid_t pid)
{
	struct watched *e = find_watched(h, pid);

	if (e)
		*e = h->watched[--h->nwatched];
}

// leave_cgroups moves this process out of its cgroups and removes them. A cgroup that it cannot
// leave stays for the next holder: on version 2 the root of a cgroup namespace accepts no process
// once controllers are enabled. So does one that other processes are still in after wait_ms in all.
static void leave_cgroups(const struct holder *h, int wait_ms)
{
	char path[PATH_MAX];

	for (int i = 0; i < h->ncgroups; i++) {
		int fd;

		snprintf(path, sizeof(path), "%s/../cgroup.procs", h->cgroups[i]);
		fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (write(fd, "0", 1) == 1)
			for (; rmdir(h->cgroups[i]) != 0 && errno == EBUSY && wait_ms > 0; wait_ms -= 10)
				usleep(10000); // a killed process leaves its cgroup a moment later
		close(fd);
	}
}

// reap_orphans waits up to two seconds for children of the keeper that exit with it.
static void reap_orphans(void)
{
	for (int tries = 0; tries < 200; tries++) {
		pid_t pid = waitpid(-1, NULL, WNOHANG);

		if (pid < 0)
			return;
		if (pid == 0)
			usleep(10000);
	}
}

__attribute__((noreturn)) static void end(const struct holder *h, int status)
{
	char path[PATH_MAX];

	reap_orphans();
	snprintf(path, sizeof(path), "%s/holder.sock", h->state);
	unlink(path);
	// After a keeper has failed, another one may serve from these cgroups, and kurid waits for this process.
	leave_cgroups(h, status == 0 ? 2000 : 100);
	exit(status);
}

static void keeper_ended(struct holder *h, int status)
{
	pid_t pid = h->keeper;
	int64_t lived_ms = now_ms() - h->started_ms;

	h->keeper = 0;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		end(h, 0);
	if (!holds_anything(h) && !h->replacing)
		end(h, WIFEXITED(status) ? WEXITSTATUS(status) : 1);
	if (lived_ms >= SETTLED_MS)
		h->delay_ms = 0;
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && h->delay_ms > DELAY_KILLED_MS)
		h->delay_ms = DELAY_KILLED_MS;
	h->due_ms = now_ms() + h->delay_ms;
	say(h, "the keeper (pid %d) ended by %s %d after %lld ms, a new one starts in %lld ms", pid,
	    WIFSIGNALED(status) ? "signal" : "exit", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
	    (long long)lived_ms, (long long)h->delay_ms);
	h->delay_ms = h->delay_ms ? h->delay_ms * 2 : DELAY_FIRST_MS;
	if (h->delay_ms > DELAY_MAX_MS)
		h->delay_ms = DELAY_MAX_MS;
}

// reap reaps all children that have exited: the keeper, and the children of dead keepers.
static void reap(struct holder *h)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		struct watched *e = find_watched(h, pid);

		if (pid == h->keeper) {
			keeper_ended(h, status);
		} else if (e) {
			e->exited = true;
			e->status = status;
		}
	}
}

// become_keeper runs in the child. The first keeper inherits the starter's descriptors 1 and 2;
// later ones write to their log. program is the descriptor of the keeper's program, -1 to use its
// path.
__attribute__((noreturn)) static void become_keeper(const struct holder *h, int program)
{
	sigset_t none;
	char pid[16];
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), log = h->started_before ? open_log(h) : -1;

	dup2(null, 0);
	if (h->started_before) {
		dup2(null, 1);
		dup2(log >= 0 ? log : null, 2);
	}
	setrlimit(RLIMIT_NOFILE, &h->files);
	snprintf(pid, sizeof(pid), "%d", h->pid);
	setenv(PID_ENV, pid, 1);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (program >= 0)
		fexecve(program, h->keeper_argv, environ);
	else
		execv(h->keeper_argv[0], h->keeper_argv);
	dprintf(2, "kuri-holder: start the keeper %s: %s\n", h->keeper_argv[0], strerror(errno));
	_exit(127);
}

// set_program makes future keepers start from a path or from a held descriptor. It returns 0 or an errno.
static int set_program(struct holder *h, const char *name, size_t n)
{
	char *copy;

	if (!valid_name(name, n))
		return EINVAL;
	if (name[0] != '/' && !find(h, name, n))
		return ENOENT;
	copy = strndup(name, n);
	if (!copy)
		return ENOMEM;
	free(h->keeper_held);
	h->keeper_held = NULL;
	if (name[0] != '/') {
		h->keeper_held = copy;
		return 0;
	}
	h->keeper_argv[0] = copy;
	free(h->keeper_path);
	h->keeper_path = copy;
	return 0;
}

static void start_keeper(struct holder *h)
{
	struct held *program = h->keeper_held ? find(h, h->keeper_held, strlen(h->keeper_held)) : NULL;
	pid_t pid = fork();

	if (pid == 0)
		become_keeper(h, program ? program->fd : -1);
	if (pid < 0) {
		say(h, "fork a keeper: %s; tried again in %d ms", strerror(errno), DELAY_MAX_MS);
		h->due_ms = now_ms() + DELAY_MAX_MS;
		return;
	}
	h->keeper = pid;
	h->replacing = false;
	h->started_ms = now_ms();
	if (!h->started_before) { // the starter reads them to the end
		int null = open("/dev/null", O_RDWR | O_CLOEXEC);

		dup2(null, 1);
		dup2(null, 2);
		if (null > 2)
			close(null);
	}
	h->started_before = true;
}

// --- replacing the holder's program ---

static int state_line(int fd, const char *format, ...)
{
	va_list arguments;
	int n;

	va_start(arguments, format);
	n = vdprintf(fd, format, arguments);
	va_end(arguments);
	return n;
}

static void keep_over_exec(const struct holder *h, bool keep)
{
	const int flag = keep ? 0 : FD_CLOEXEC;

	fcntl(h->lock, F_SETFD, flag);
	fcntl(h->listener, F_SETFD, flag);
	for (size_t i = 0; i < h->nheld; i++)
		fcntl(h->held[i].fd, F_SETFD, flag);
}

// reexec starts this program anew, with all that is held, from its file or from that at path if one
// is given. It returns an errno when it cannot.
static int reexec(struct holder *h, const char *path, size_t n)
{
	char number[16], *old = h->argv[0], given[HOLDER_NAME_MAX + 1];
	int failed, fd;

	if (n > 0 && (!valid_name(path, n) || path[0] != '/'))
		return EINVAL;
	fd = memfd_create("kuri-holder-state", 0);
	if (fd < 0)
		return errno;
	state_line(fd, "holder 1\nlock %d\nlistener %d\nkeeper %d %d\nfiles %llu %llu\n", h->lock, h->listener, h->keeper,
		   h->started_before, (unsigned long long)h->files.rlim_cur, (unsigned long long)h->files.rlim_max);
	for (size_t i = 0; i < h->nheld; i++)
		state_line(fd, "held %d %s\n", h->held[i].fd, h->held[i].name);
	for (size_t i = 0; i < h->nwatched; i++)
		state_line(fd, "watched %d %d %d\n", h->watched[i].pid, h->watched[i].exited, h->watched[i].status);
	if (h->keeper_held)
		state_line(fd, "program %s\n", h->keeper_held);
	if (state_line(fd, "end\n") < 0) {
		failed = errno;
		close(fd);
		return failed;
	}
	lseek(fd, 0, SEEK_SET);
	snprintf(number, sizeof(number), "%d", fd);
	setenv(STATE_ENV, number, 1);
	keep_over_exec(h, true);
	if (n > 0) {
		memcpy(given, path, n);
		given[n] = 0;
		h->argv[0] = given;
	}
	execv(h->argv[0], h->argv);
	failed = errno;
	h->argv[0] = old;
	keep_over_exec(h, false);
	unsetenv(STATE_ENV);
	close(fd);
	return failed;
}

// take_over reads the state that the previous program of this process has left: a holder, or a
// keeper, which leaves no file limits because the process already has them. Unknown lines are
// logged. If the end is missing, the part that was read counts.
static void take_over(struct holder *h, int fd)
{
	char line[HOLDER_NAME_MAX + 64], name[HOLDER_NAME_MAX + 1];
	FILE *f = fdopen(fd, "r");
	int a, b, c;
	unsigned long long soft, hard;

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "lock %d", &h->lock) == 1 || sscanf(line, "listener %d", &h->listener) == 1)
			continue;
		if (sscanf(line, "keeper %d %d", &a, &b) == 2) {
			h->keeper = a;
			h->started_before = b;
		} else if (sscanf(line, "files %llu %llu", &soft, &hard) == 2) {
			h->files = (struct rlimit){soft, hard};
		} else if (sscanf(line, "held %d %160s", &a, name) == 2) {
			if (put(h, name, strlen(name), a) != 0)
				say(h, "descriptor %s could not be taken over", name);
		} else if (sscanf(line, "watched %d %d %d", &a, &b, &c) == 3) {
			if (watch(h, a) == 0)
				h->watched[h->nwatched - 1] = (struct watched){.pid = a, .exited = b, .status = c};
		} else if (sscanf(line, "program %160s", name) == 1) {
			if (set_program(h, name, strlen(name)) != 0)
				say(h, "the keeper's program %s is not held", name);
		} else if (strcmp(line, "end\n") != 0 && strcmp(line, "holder 1\n") != 0) {
			say(h, "unknown state of an earlier holder: %.40s", line);
		}
	}
	if (f)
		fclose(f);
	h->started_ms = now_ms();
	keep_over_exec(h, false);
}

// --- requests ---

struct request {
	uint32_t version, operation;
	int32_t pid;
	const char *name;
	size_t name_length;
	int fd; // -1: none
};

struct answer {
	int32_t error, first, second;
	char data[HOLDER_ANSWER_MAX - 3 * sizeof(int32_t)];
	size_t length;
	int fd; // -1: none
};

static void names_from(const struct holder *h, struct answer *a, size_t index)
{
	for (; index < h->nheld; index++) {
		size_t n = strlen(h->held[index].name) + 1;

		if (a->length + n > sizeof(a->data)) {
			a->first = index;
			return;
		}
		memcpy(a->data + a->length, h->held[index].name, n);
		a->length += n;
	}
}

// serve answers one request. Only PUT keeps the descriptor that came with it.
static void serve(struct holder *h, struct request *q, struct answer *a)
{
	struct held *e;
	struct watched *w;

	if (q->version != HOLDER_VERSION) {
		a->error = EPROTO;
		return;
	}
	switch (q->operation) {
	case HOLDER_INFO:
		a->first = getpid();
		a->second = h->keeper;
		a->length = snprintf(a->data, sizeof(a->data), "%s", VERSION);
		return;
	case HOLDER_PUT:
		a->error = q->fd < 0 ? EBADF : put(h, q->name, q->name_length, q->fd);
		if (a->error == 0)
			q->fd = -1;
		return;
	case HOLDER_GET:
		e = find(h, q->name, q->name_length);
		a->error = e ? 0 : ENOENT;
		a->fd = e ? e->fd : -1;
		return;
	case HOLDER_DROP:
		drop(h, q->name, q->name_length);
		return;
	case HOLDER_NAMES:
		a->error = q->pid < 0 ? EINVAL : 0;
		if (q->pid >= 0)
			names_from(h, a, q->pid);
		return;
	case HOLDER_WATCH:
		a->error = watch(h, q->pid);
		return;
	case HOLDER_EXITED:
		reap(h); // the client may know of the exit before SIGCHLD has arrived
		w = find_watched(h, q->pid);
		a->error = w ? 0 : ENOENT;
		a->first = w && w->exited;
		a->second = w ? w->status : 0;
		return;
	case HOLDER_FORGET:
		forget(h, q->pid);
		return;
	case HOLDER_RESTART:
		a->error = h->keeper && kill(h->keeper, SIGKILL) != 0 ? errno : 0;
		h->delay_ms = 0;
		h->replacing = a->error == 0;
		return;
	case HOLDER_REEXEC:
		a->error = reexec(h, q->name, q->name_length);
		return;
	case HOLDER_PROGRAM:
		a->error = set_program(h, q->name, q->name_length);
		return;
	default:
		a->error = ENOSYS;
	}
}

// send_answer reports whether the answer was sent. It never waits for a client that does not read.
static bool send_answer(int client, const struct answer *a)
{
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec parts[] = {{(void *)a, 3 * sizeof(int32_t)}, {(void *)a->data, a->length}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

	if (a->fd >= 0) {
		message.msg_control = control;
		message.msg_controllen = sizeof(control);
		*CMSG_FIRSTHDR(&message) = (struct cmsghdr){
			.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int)),
		};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &a->fd, sizeof(int));
	}
	return sendmsg(client, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
}

// take_descriptors returns the first descriptor of a message, -1 for none, and closes the others.
static int take_descriptors(struct msghdr *message)
{
	int first = -1;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; CMSG_LEN(at + sizeof(int)) <= c->cmsg_len; at += sizeof(int)) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + at, sizeof(int));
			if (first < 0)
				first = fd;
			else
				close(fd);
		}
	}
	return first;
}

// answer_client serves one request. It reports whether the connection stays open.
static bool answer_client(struct holder *h, int client)
{
	struct {
		uint32_t version, operation;
		int32_t pid;
		char name[HOLDER_NAME_MAX + 1]; // one more, to detect a name that is too long
	} packet;
	const size_t head = 3 * sizeof(uint32_t);
	char control[CMSG_SPACE(8 * sizeof(int))];
	struct iovec body = {&packet, sizeof(packet)};
	struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct answer a = {.fd = -1};
	struct request q;
	ssize_t n = recvmsg(client, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	bool sent;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	if (n <= 0)
		return false;
	q.fd = take_descriptors(&message);
	if ((size_t)n < head) {
		a.error = EBADMSG;
	} else {
		q.version = packet.version;
		q.operation = packet.operation;
		q.pid = packet.pid;
		q.name = packet.name;
		q.name_length = n - head;
		serve(h, &q, &a);
	}
	sent = send_answer(client, &a);
	if (q.fd >= 0)
		close(q.fd);
	return sent;
}

static void accept_client(struct holder *h)
{
	int fd = accept4(h->listener, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return;
	if (h->nclients == HOLDER_CLIENTS_MAX)
		close(fd);
	else
		h->clients[h->nclients++] = fd;
}

// --- the lock and the socket ---

// open_lock locks the lock file and writes the holder's pid to it. It returns the descriptor, or -1
// with the reason in why.
static int open_lock(const struct holder *h, char *why, size_t size)
{
	char path[PATH_MAX], pid[16] = "";
	int fd;

	snprintf(path, sizeof(path), "%s/holder.lock", h->state);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0) {
		snprintf(why, size, "open %.200s: %s", path, strerror(errno));
		return -1;
	}
	if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
		if (read(fd, pid, sizeof(pid) - 1) < 0)
			pid[0] = 0;
		snprintf(why, size, "another holder serves %.200s already: pid %s", h->state, pid);
	} else if (ftruncate(fd, 0) != 0 || dprintf(fd, "%d\n", getpid()) < 0) {
		snprintf(why, size, "write %.200s: %s", path, strerror(errno));
	} else {
		return fd;
	}
	close(fd);
	return -1;
}

// open_listener replaces the socket. The caller has the lock. It returns the descriptor, or -1 with the reason in why.
static int open_listener(const struct holder *h, char *why, size_t size)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd, n = snprintf(address.sun_path, sizeof(address.sun_path), "%s/holder.sock", h->state);

	if (n < 0 || (size_t)n >= sizeof(address.sun_path)) {
		snprintf(why, size, "the state directory %.200s is too long for a socket in it", h->state);
		return -1;
	}
	unlink(address.sun_path); // of a dead holder
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	umask(0077);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(fd, 64) != 0) {
		snprintf(why, size, "listen on %s: %s", address.sun_path, strerror(errno));
		if (fd >= 0)
			close(fd);
		fd = -1;
	}
	umask(0022);
	return fd;
}

// --- the loop ---

// restore creates the lock and the socket again if they were removed, alone or with the state directory. The sender of
// SIGHUP, the keeper or kurid, has created the directory before.
static void restore(struct holder *h)
{
	char path[PATH_MAX], why[512];
	struct stat ours, there;
	int fd;

	snprintf(path, sizeof(path), "%s/holder.lock", h->state);
	if (fstat(h->lock, &ours) != 0 || stat(path, &there) != 0 || ours.st_dev != there.st_dev || ours.st_ino != there.st_ino) {
		fd = open_lock(h, why, sizeof(why));
		if (fd < 0) {
			say(h, "the lock was removed and cannot be restored: %s", why);
			return;
		}
		close(h->lock);
		h->lock = fd;
	}
	snprintf(path, sizeof(path), "%s/holder.sock", h->state);
	if (lstat(path, &there) == 0)
		return;
	fd = open_listener(h, why, sizeof(why));
	if (fd < 0) {
		say(h, "the socket was removed and cannot be restored: %s", why);
		return;
	}
	close(h->listener);
	h->listener = fd;
	say(h, "the socket was removed, and has been restored");
}

static void take_signal(struct holder *h)
{
	struct signalfd_siginfo info;

	if (read(h->signals, &info, sizeof(info)) != sizeof(info))
		return;
	if (info.ssi_signo == SIGCHLD)
		reap(h);
	else if (info.ssi_signo == SIGHUP)
		restore(h);
	else if (h->keeper)
		kill(h->keeper, info.ssi_signo);
}

// open_gate reports whether the gate is open: the starter has closed its end.
static bool open_gate(struct holder *h)
{
	char byte;
	ssize_t n = read(h->gate, &byte, 1);

	if (n > 0 || (n < 0 && (errno == EINTR || errno == EAGAIN)))
		return false;
	h->gate = -1;
	return true;
}

static int wait_ms(const struct holder *h)
{
	int64_t left_ms = h->due_ms - now_ms();

	if (h->keeper || h->gate >= 0)
		return -1;
	return left_ms < 0 ? 0 : (int)left_ms;
}

__attribute__((noreturn)) static void run(struct holder *h)
{
	struct pollfd fds[3 + HOLDER_CLIENTS_MAX];

	for (;;) {
		int nclients = h->nclients;

		fds[0] = (struct pollfd){h->signals, POLLIN, 0};
		fds[1] = (struct pollfd){h->listener, POLLIN, 0};
		fds[2] = (struct pollfd){h->gate, POLLIN, 0}; // poll ignores a negative one
		for (int i = 0; i < nclients; i++)
			fds[3 + i] = (struct pollfd){h->clients[i], POLLIN, 0};
		if (poll(fds, 3 + nclients, wait_ms(h)) < 0 && errno != EINTR)
			die("poll: %s", strerror(errno));
		if (fds[0].revents)
			take_signal(h);
		if (fds[2].revents && open_gate(h))
			h->due_ms = now_ms();
		for (int i = nclients - 1; i >= 0; i--) {
			if (fds[3 + i].revents && !answer_client(h, h->clients[i])) {
				close(h->clients[i]);
				h->clients[i] = h->clients[--h->nclients];
			}
		}
		if (fds[1].revents)
			accept_client(h);
		if (!h->keeper && h->gate < 0 && now_ms() >= h->due_ms)
			start_keeper(h);
	}
}

// --- the start ---

static void take_lock(struct holder *h)
{
	char why[512];

	h->lock = open_lock(h, why, sizeof(why));
	if (h->lock < 0)
		die("%s", why);
}

static void start_listening(struct holder *h)
{
	char why[512];

	h->listener = open_listener(h, why, sizeof(why));
	if (h->listener < 0)
		die("%s", why);
}

static void enter_cgroups(const struct holder *h)
{
	char path[PATH_MAX];

	for (int i = 0; i < h->ncgroups; i++) {
		int fd;

		snprintf(path, sizeof(path), "%s/cgroup.procs", h->cgroups[i]);
		fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, "0", 1) != 1)
			die("enter the cgroup %s: %s", h->cgroups[i], strerror(errno));
		close(fd);
	}
}

static void take_signals(struct holder *h)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP); // not ignored: containers would inherit an ignored signal
	sigprocmask(SIG_BLOCK, &set, NULL);
	h->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (h->signals < 0)
		die("signalfd: %s", strerror(errno));
}

// raise_files raises the holder's own limit of open files to the hard limit. The keeper starts with the original limit.
static void raise_files(struct holder *h, bool remembered)
{
	struct rlimit now;

	if (getrlimit(RLIMIT_NOFILE, &now) != 0)
		die("getrlimit: %s", strerror(errno));
	if (!remembered)
		h->files = now;
	now.rlim_cur = now.rlim_max;
	setrlimit(RLIMIT_NOFILE, &now);
}

static void parse(struct holder *h, int argc, char **argv)
{
	const char *usage = "usage: kuri-holder --state /absolute/path [--cgroup DIR]... -- KEEPER ARGUMENT...";
	int i = 1;

	h->argv = argv;
	for (; i + 1 < argc && strcmp(argv[i], "--") != 0; i += 2) {
		if (strcmp(argv[i], "--state") == 0)
			h->state = argv[i + 1];
		else if (strcmp(argv[i], "--cgroup") == 0 && h->ncgroups < CGROUPS_MAX)
			h->cgroups[h->ncgroups++] = argv[i + 1];
		else
			die("%s", usage);
	}
	if (!h->state || h->state[0] != '/' || argv[0][0] != '/' || i + 1 >= argc)
		die("%s", usage);
	h->keeper_argv = &argv[i + 1];
}

int main(int argc, char **argv)
{
	static struct holder h;
	const char *inherited = getenv(STATE_ENV);

	if (argc == 2 && strcmp(argv[1], "--version") == 0) {
		printf("kuri-holder %s\n", VERSION);
		return 0;
	}
	parse(&h, argc, argv);
	h.gate = -1;
	h.pid = getpid();
	if (!inherited)
		syscall(SYS_close_range, 3, ~0U, 0); // descriptors that the starter has left open
	prctl(PR_SET_NAME, "kuri-holder");
	if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0)
		die("become the reaper of the containers: %s", strerror(errno));
	if (chdir("/") != 0)
		die("chdir /: %s", strerror(errno));
	umask(0022);
	take_signals(&h);
	if (inherited) {
		take_over(&h, atoi(inherited));
		unsetenv(STATE_ENV);
		raise_files(&h, h.files.rlim_max != 0);
	} else {
		setsid(); // fails if the starter has already done so
		take_lock(&h);
		start_listening(&h);
		enter_cgroups(&h);
		raise_files(&h, false);
		h.gate = 0;
	}
	reap(&h); // children that exited before the signals were blocked
	run(&h);
}
