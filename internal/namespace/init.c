// Process 1 of a pod's shared PID namespace. It runs instead of the Go program, in a constructor, if the environment has
// _KURI_POD_INIT, the mount options of its root filesystem. So it costs only a few pages of memory. It reaps orphans and exits
// on SIGTERM or SIGINT. If it cannot start it writes the reason to descriptor 3, which it closes once it has started.
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define REPORT_FD 3
#define NOBODY 65535 // the user of the pause images

static void must(int ok, const char *what)
{
	if (ok)
		return;
	dprintf(REPORT_FD, "%s: %s", what, strerror(errno));
	_exit(1);
}

// leave_host_root changes to a root filesystem with nothing but /proc of this PID namespace, so that /proc/1/root shows nothing
// and no mount of the host stays busy.
static void leave_host_root(const char *options)
{
	const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "make mounts private");
	must(mount("kuri-init", "/proc", "tmpfs", flags, options) == 0, "mount tmpfs");
	must(mkdir("/proc/proc", 0555) == 0, "mkdir");
	must(mount("proc", "/proc/proc", "proc", flags, NULL) == 0, "mount proc");
	must(chdir("/proc") == 0, "chdir");
	if (syscall(SYS_pivot_root, ".", ".") == 0) {
		must(umount2(".", MNT_DETACH) == 0, "unmount the host's root");
	} else { // the root is an initramfs
		must(mount(".", "/", NULL, MS_MOVE, NULL) == 0, "move root");
		must(chroot(".") == 0, "chroot");
	}
	must(chdir("/") == 0, "chdir");
	must(mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY | flags, NULL) == 0, "remount read-only");
}

static void drop_privileges(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct none[2];

	for (int cap = 0; prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0; cap++)
		;
	must(setgroups(0, NULL) == 0, "setgroups");
	// EINVAL: the user namespace is too small to have that id.
	must(setresgid(NOBODY, NOBODY, NOBODY) == 0 || errno == EINVAL, "setresgid");
	must(setresuid(NOBODY, NOBODY, NOBODY) == 0 || errno == EINVAL, "setresuid");
	memset(none, 0, sizeof(none));
	must(syscall(SYS_capset, &header, none) == 0, "capset");
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
}

__attribute__((constructor)) static void kuri_pod_init(void)
{
	const char *options = getenv("_KURI_POD_INIT");
	sigset_t all;

	if (options == NULL)
		return;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	prctl(PR_SET_NAME, "kuri-init", 0, 0, 0);
	leave_host_root(options);
	drop_privileges();
	close(REPORT_FD);
	close(REPORT_FD + 1); // of this program
	for (;;) {
		int sig = sigwaitinfo(&all, NULL);

		if (sig == SIGTERM || sig == SIGINT)
			_exit(0);
		if (sig == SIGCHLD)
			while (waitpid(-1, NULL, WNOHANG) > 0)
				;
	}
}
