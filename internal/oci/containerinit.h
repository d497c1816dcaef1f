// The init of a container with a specification like a kubelet's: the part of forkserver.c that
// builds the root filesystem and waits at the start line. It takes the same steps as libcontainer's
// init, in the same order. beyondInit in native.go decides which specifications it runs. It opens
// every path of the container with openat2(2) below the container's root and attaches mounts to
// descriptors, so symlinks in the image cannot lead out of it.
//
// Only forkserver.c includes this file. It uses the static functions there.
#include <limits.h>
#include <linux/mount.h>
#include <sys/mount.h>
#include <sys/statvfs.h>

// Descriptors of the init: the starter's mount namespace, the start line, the cgroup to enter last,
// and the pod's namespaces.
enum { MOUNTS = 4, START = 6, LAST_CGROUP = 9, JOINED = 10, JOINED_MAX = 8 };

enum { FILESYSTEM = 1, BIND }; // kinds of mounts
enum {
	RECURSIVE = 1,    // a bind includes the mounts below its source
	PLAIN = 2,        // the destination is a directory, and its path has no symlinks
	COPY_MODE = 4,    // the new root gets the mode of the directory that it covers
	READ_ONLY = 8,    // the filesystem, not only the mount
	READ_ONLY_LATE = 16, // the mount, after everything else is in place
	CHANGE = 32,      // a bind with its own attributes
	STAGED = 64,      // the source is opened with the node's privileges, before the init enters the user namespace
	MAPPED = 128,     // ids are mapped as in the user namespace
	MAPPED_DEEP = 256, // also in mounts below the source
};

struct mount_request {
	uint32_t kind, flags, noptions, npropagation;
	char *source, *target, *type, **options;
	uint64_t set, clear, unwanted, deep_set, deep_clear, deep_propagation; // unwanted: attributes that must be off
	uint32_t *propagation;
};

struct device_request {
	char *path;
	uint32_t mode, major, minor, uid, gid;
};

static struct {
	uint32_t new_pids, unshared, propagation, parent_propagation, read_only, make_devices, nmounts, ndevices, nmasked, nreadonly, njoined;
	uint32_t joined[JOINED_MAX]; // namespace types; their descriptors start at JOINED
	char *stage, *root, *hostname, *domainname, *last_cgroup, **masked, **readonly;
	struct mount_request *mounts;
	struct device_request *devices;
} c;

static void *array(uint32_t n, size_t size)
{
	void *all = calloc((size_t)n + 1, size);

	must(all != NULL, READ);
	return all;
}

static void read_mount(struct mount_request *m)
{
	m->kind = u32();
	m->flags = u32();
	m->source = string();
	m->target = string();
	m->type = string();
	m->options = strings(&m->noptions);
	m->set = u64();
	m->clear = u64();
	m->unwanted = u64();
	m->deep_set = u64();
	m->deep_clear = u64();
	m->deep_propagation = u64();
	m->npropagation = count();
	m->propagation = array(m->npropagation, sizeof(uint32_t));
	for (uint32_t i = 0; i < m->npropagation; i++)
		m->propagation[i] = u32();
}

// read_container reads the end of a request, in the order in which nativerequest.go writes it.
static void read_container(void)
{
	c.new_pids = u32();
	c.unshared = u32();
	c.propagation = u32();
	c.parent_propagation = u32();
	c.read_only = u32();
	c.make_devices = u32();
	c.njoined = u32();
	errno = EBADMSG;
	must(c.njoined <= JOINED_MAX, READ);
	for (uint32_t i = 0; i < c.njoined; i++)
		c.joined[i] = u32();
	c.stage = string();
	c.root = string();
	c.hostname = string();
	c.domainname = string();
	c.last_cgroup = string();
	c.masked = strings(&c.nmasked);
	c.readonly = strings(&c.nreadonly);
	c.nmounts = count();
	c.mounts = array(c.nmounts, sizeof(*c.mounts));
	for (uint32_t i = 0; i < c.nmounts; i++)
		read_mount(&c.mounts[i]);
	c.ndevices = count();
	c.devices = array(c.ndevices, sizeof(*c.devices));
	for (uint32_t i = 0; i < c.ndevices; i++) {
		struct device_request *d = &c.devices[i];

		d->path = string();
		d->mode = u32();
		d->major = u32();
		d->minor = u32();
		d->uid = u32();
		d->gid = u32();
	}
}

// --- the mount API, for which musl and older C libraries have no functions ---

static int open_clone(int dir, const char *path, unsigned flags)
{
	return syscall(SYS_open_tree, dir, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags);
}

static int attach(int mount, int target)
{
	return syscall(SYS_move_mount, mount, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

static int change(int mount, unsigned flags, uint64_t set, uint64_t clear, uint64_t propagation)
{
	struct mount_attr attr = {.attr_set = set, .attr_clr = clear, .propagation = propagation};

	return syscall(SYS_mount_setattr, mount, "", AT_EMPTY_PATH | flags, &attr, sizeof(attr));
}

static int option(int context, unsigned command, const char *key, const char *value)
{
	return syscall(SYS_fsconfig, context, command, key, value, 0);
}

// --- paths of the container ---

static int root = -1; // O_PATH descriptor of the root filesystem, before and after it becomes "/"

static int open_below(int dir, const char *path, uint64_t flags, uint64_t resolve)
{
	struct open_how how = {.flags = O_PATH | O_CLOEXEC | flags, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | resolve};

	return syscall(SYS_openat2, dir, path, &how, sizeof(how));
}

// inside opens a path as seen from the container.
static int inside(const char *path) { return open_below(root, path, 0, 0); }

// A path of the container that is followed name by name. Missing parts are created.
struct walk {
	char at[PATH_MAX];   // the current path: names without symlinks, "" for the root
	char rest[PATH_MAX]; // the names still to follow
	int links;           // symlinks followed so far
};

// join_path writes a/b to a buffer of PATH_MAX bytes. It fails if that is too long.
static void join_path(char *to, const char *a, const char *b, int step)
{
	errno = ENAMETOOLONG;
	must(snprintf(to, PATH_MAX, "%s/%s", a, b) < PATH_MAX, step);
}

static int open_plain(const char *path, uint64_t flags)
{
	return open_below(root, *path ? path : "/", O_NOFOLLOW | flags, RESOLVE_NO_SYMLINKS);
}

// make_name creates one name in the walk's current directory: a directory, or a file.
static void make_name(const struct walk *w, const char *name, int file, int step)
{
	int dir = open_plain(w->at, O_DIRECTORY), fd;

	must(dir >= 0, step);
	if (file) {
		fd = openat(dir, name, O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_RDONLY, 0644);
		must(fd >= 0 && close(fd) == 0, step);
	} else {
		must(mkdirat(dir, name, 0755) == 0, step);
	}
	close(dir);
}

// follow prepends the target of a symlink to the names still to follow.
static void follow(struct walk *w, int link, int step)
{
	char target[PATH_MAX], rest[PATH_MAX];
	ssize_t n = readlinkat(link, "", target, sizeof(target) - 1);

	must(n > 0, step);
	target[n] = 0;
	errno = ELOOP;
	must(++w->links <= 40, step);
	if (*target == '/')
		w->at[0] = 0;
	join_path(rest, target, w->rest, step);
	memcpy(w->rest, rest, sizeof(rest));
}

// walk_on follows the next name. It returns a descriptor of the new position, or -1 for ".", ".."
// and symlinks.
static int walk_on(struct walk *w, int file, int step)
{
	char name[PATH_MAX], next[PATH_MAX], *slash = strchrnul(w->rest, '/'), *cut;
	struct stat st;
	int fd;

	snprintf(name, sizeof(name), "%.*s", (int)(slash - w->rest), w->rest);
	memmove(w->rest, *slash ? slash + 1 : slash, strlen(*slash ? slash + 1 : slash) + 1);
	if (!*name || strcmp(name, ".") == 0)
		return -1;
	if (strcmp(name, "..") == 0) {
		if ((cut = strrchr(w->at, '/')))
			*cut = 0;
		return -1;
	}
	join_path(next, w->at, name, step);
	fd = open_plain(next, 0);
	if (fd < 0 && errno == ENOENT) {
		make_name(w, name, file && !w->rest[strspn(w->rest, "/")], step);
		fd = open_plain(next, 0);
	}
	must(fd >= 0 && fstat(fd, &st) == 0, step);
	if (S_ISLNK(st.st_mode)) {
		follow(w, fd, step);
		close(fd);
		return -1;
	}
	memcpy(w->at, next, sizeof(next));
	return fd;
}

// make_inside opens a path and creates its missing parts, also those of symlink targets:
// directories, and a file as the last name if file is set. *made is set to whether the kernel's
// lookup of the path found nothing, as libcontainer decides; made may be NULL. (A path such as
// missing/../there counts, even if "there" exists.)
static int make_inside(const char *path, int file, int *made, int step)
{
	struct walk *w;
	int fd = inside(path), next;

	if (made)
		*made = fd < 0;
	if (fd >= 0)
		return fd;
	must(errno == ENOENT, step);
	w = calloc(1, sizeof(*w));
	must(w != NULL, step);
	join_path(w->rest, path, "", step);
	while (*w->rest) {
		next = walk_on(w, file, step);
		if (next < 0)
			continue;
		if (fd >= 0)
			close(fd);
		fd = next;
	}
	free(w);
	if (fd < 0)
		fd = open_plain("", O_DIRECTORY);
	must(fd >= 0, step);
	return fd;
}

static int same_place(int a, int b)
{
	struct stat x, y;

	return fstat(a, &x) != 0 || fstat(b, &y) != 0 || (x.st_dev == y.st_dev && x.st_ino == y.st_ino);
}

// check_target refuses destinations that no mount may cover: the root, and anything in a mounted
// /proc.
static void check_target(int target)
{
	struct statfs fs;

	must(fstatfs(target, &fs) == 0, MOUNT);
	errno = EPERM;
	must(fs.f_type != PROC_SUPER_MAGIC && !same_place(target, root), MOUNT);
}

// --- the root filesystem ---

// open_target opens the destination of a mount, and creates it if it is missing.
static int open_target(const struct mount_request *m, int file, int *made)
{
	int target = -1;

	*made = 0;
	if (m->flags & PLAIN) {
		target = open_below(root, m->target, O_DIRECTORY, RESOLVE_NO_SYMLINKS);
		must(target >= 0 || errno == ENOENT, MOUNT);
	}
	if (target < 0)
		target = make_inside(m->target, file, made, MOUNT);
	check_target(target);
	return target;
}

static int new_filesystem(const struct mount_request *m, int target, int fresh)
{
	int context = syscall(SYS_fsopen, m->type, FSOPEN_CLOEXEC), made;
	struct stat st;
	char mode[8];

	must(context >= 0, MOUNT);
	must(!*m->source || option(context, FSCONFIG_SET_STRING, "source", m->source) == 0, MOUNT);
	if (m->flags & COPY_MODE && !fresh && fstat(target, &st) == 0) {
		snprintf(mode, sizeof(mode), "%04o", st.st_mode & 07777);
		must(option(context, FSCONFIG_SET_STRING, "mode", mode) == 0, MOUNT);
	}
	for (uint32_t i = 0; i < m->noptions; i++) {
		char *key = m->options[i], *value = strchr(key, '=');

		if (value)
			*value++ = 0;
		must(option(context, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, key, value) == 0, MOUNT);
	}
	must(!(m->flags & READ_ONLY) || option(context, FSCONFIG_SET_FLAG, "ro", NULL) == 0, MOUNT);
	must(option(context, FSCONFIG_CMD_CREATE, NULL, NULL) == 0, MOUNT);
	made = syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, (unsigned)m->set);
	must(made >= 0, MOUNT);
	close(context);
	return made;
}

// staged writes the name of the current mount's staged source: a clone, mounted in the working
// directory.
static const char *staged(char name[16])
{
	snprintf(name, 16, "%u", c_mount);
	return name;
}

static int is_directory(int fd)
{
	struct stat st;

	must(fstat(fd, &st) == 0, MOUNT);
	return S_ISDIR(st.st_mode);
}

// existing returns the attributes of a mount. The kernel has locked those that are on: a user
// namespace cannot turn them off.
static uint64_t existing(int mount)
{
	struct statvfs fs;

	must(fstatvfs(mount, &fs) == 0, MOUNT);
	return (fs.f_flag & ST_RDONLY ? MOUNT_ATTR_RDONLY : 0) | (fs.f_flag & ST_NOSUID ? MOUNT_ATTR_NOSUID : 0) |
	       (fs.f_flag & ST_NODEV ? MOUNT_ATTR_NODEV : 0) | (fs.f_flag & ST_NOEXEC ? MOUNT_ATTR_NOEXEC : 0);
}

// change_bind sets the attributes of a bind. Locked ones stay on. It fails if one of those must be
// off.
static void change_bind(const struct mount_request *m, int made)
{
	uint64_t locked;

	if (!(m->flags & CHANGE) || change(made, 0, m->set, m->clear, 0) == 0)
		return;
	must(errno == EPERM && r.switches & USERNS, MOUNT);
	locked = existing(made);
	errno = EPERM;
	must(!(locked & m->unwanted), MOUNT);
	must(change(made, 0, m->set | locked, m->clear & ~locked, 0) == 0, MOUNT);
}

static void make_mount(const struct mount_request *m)
{
	int made = -1, target, fresh;
	char name[16];

	if (m->kind == BIND) {
		made = open_clone(AT_FDCWD, m->flags & STAGED ? staged(name) : m->source, m->flags & RECURSIVE ? AT_RECURSIVE : 0);
		must(made >= 0, MOUNT);
		target = open_target(m, !is_directory(made), &fresh);
		change_bind(m, made);
	} else {
		target = open_target(m, 0, &fresh);
		made = new_filesystem(m, target, fresh);
	}
	for (uint32_t i = 0; i < m->npropagation; i++)
		must(change(made, m->propagation[i] & MS_REC ? AT_RECURSIVE : 0, 0, 0, m->propagation[i] & ~MS_REC) == 0, MOUNT);
	if (m->deep_set | m->deep_clear | m->deep_propagation)
		must(change(made, AT_RECURSIVE, m->deep_set, m->deep_clear, m->deep_propagation) == 0, MOUNT);
	must(attach(made, target) == 0, MOUNT);
	close(made);
	close(target);
}

// stage_source mounts a clone of a bind's source in the working directory, with all mounts below
// it. The kernel refuses to clone less in a user namespace, since that would reveal what those
// mounts hide.
static void stage_source(const struct mount_request *m, int user)
{
	struct mount_attr mapping = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = user};
	char name[16];
	int made = open_clone(AT_FDCWD, m->source, AT_RECURSIVE), file;

	must(made >= 0, MOUNT);
	if (m->flags & MAPPED)
		must(syscall(SYS_mount_setattr, made, "", AT_EMPTY_PATH | (m->flags & MAPPED_DEEP ? AT_RECURSIVE : 0), &mapping,
			     sizeof(mapping)) == 0, IDMAP);
	if (is_directory(made)) {
		must(mkdir(staged(name), 0755) == 0, MOUNT);
	} else {
		file = open(staged(name), O_CREAT | O_EXCL | O_CLOEXEC | O_RDONLY, 0644);
		must(file >= 0 && close(file) == 0, MOUNT);
	}
	must(syscall(SYS_move_mount, made, "", AT_FDCWD, name, MOVE_MOUNT_F_EMPTY_PATH) == 0, MOUNT);
	close(made);
}

// stage mounts the sources of binds in a tmpfs that becomes the working directory, because root in
// the user namespace may not reach the sources and cannot map ids. The sources are mounted, not
// just kept open, so that they are locked in the container's mount namespace like all other mounts
// of the node: their attributes cannot be changed, and the paths that they hide stay hidden.
static void stage(int user)
{
	int context = syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC), made;

	must(context >= 0 && option(context, FSCONFIG_CMD_CREATE, NULL, NULL) == 0, MOUNT);
	made = syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
	must(made >= 0 && syscall(SYS_move_mount, made, "", AT_FDCWD, c.stage, MOVE_MOUNT_F_EMPTY_PATH) == 0, MOUNT);
	must(fchdir(made) == 0, MOUNT);
	close(made);
	close(context);
	for (c_mount = 0; c_mount < c.nmounts; c_mount++)
		if (c.mounts[c_mount].flags & STAGED)
			stage_source(&c.mounts[c_mount], user);
	c_mount = 0;
}

// bind_device binds the node's own device to a name, which is created if it is missing. An existing
// file of the image is covered without being opened.
static void bind_device(const struct device_request *d, int dir, const char *name)
{
	int made = open_clone(AT_FDCWD, d->path, 0), fd = openat(dir, name, O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_RDONLY, 0);

	if (fd < 0 && errno == EEXIST)
		fd = open_below(dir, name, O_NOFOLLOW, RESOLVE_NO_SYMLINKS);
	must(made >= 0 && fd >= 0 && attach(made, fd) == 0, DEVICE);
	close(made);
	close(fd);
}

static void make_device(const struct device_request *d)
{
	char *parent = strdup(d->path), *name = parent ? strrchr(parent, '/') : NULL;
	int dir;

	must(name != NULL && name[1] != 0, DEVICE);
	*name++ = 0;
	dir = make_inside(*parent ? parent : "/", 0, NULL, DEVICE);
	if (r.switches & USERNS) { // where mknod is not permitted
		bind_device(d, dir, name);
	} else if (mknodat(dir, name, d->mode, makedev(d->major, d->minor)) != 0) {
		must(errno == EEXIST || errno == EPERM, DEVICE);
		if (errno == EPERM)
			bind_device(d, dir, name);
	} else {
		int fd = open_below(dir, name, O_NOFOLLOW, RESOLVE_NO_SYMLINKS);

		must(fd >= 0 && fchownat(fd, "", d->uid, d->gid, AT_EMPTY_PATH) == 0, DEVICE);
		close(fd);
	}
	close(dir);
	free(parent);
}

static void link_device(int dev, const char *target, const char *name)
{
	must(symlinkat(target, dev, name) == 0 || errno == EEXIST, DEVICE);
}

static void make_devices(void)
{
	int dev;

	if (!c.make_devices)
		return;
	umask(0); // so that device modes are exact
	for (uint32_t i = 0; i < c.ndevices; i++)
		make_device(&c.devices[i]);
	umask(022);
	dev = make_inside("/dev", 0, NULL, DEVICE);
	must(unlinkat(dev, "ptmx", 0) == 0 || errno == ENOENT, DEVICE);
	link_device(dev, "pts/ptmx", "ptmx");
	link_device(dev, "/proc/self/fd", "fd");
	link_device(dev, "/proc/self/fd/0", "stdin");
	link_device(dev, "/proc/self/fd/1", "stdout");
	link_device(dev, "/proc/self/fd/2", "stderr");
	if (access("/proc/kcore", F_OK) == 0)
		link_device(dev, "/proc/kcore", "core");
	close(dev);
}

// prepare_root sets the mount propagation that the specification asks for, and makes the root a
// mount whose parent is not shared, as pivot_root(2) requires.
static void prepare_root(void)
{
	must(mount(NULL, "/", NULL, c.propagation, NULL) == 0, PIVOT);
	must(mount(NULL, c.root, NULL, c.parent_propagation, NULL) == 0, PIVOT);
	must(mount(c.root, c.root, NULL, MS_BIND | MS_REC, NULL) == 0, PIVOT);
	root = open(c.root, O_PATH | O_DIRECTORY | O_CLOEXEC);
	must(root >= 0, PIVOT);
}

// enter_root makes the root filesystem "/" and removes the node's from the mount namespace.
static void enter_root(void)
{
	int old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);

	must(old >= 0 && fchdir(root) == 0 && syscall(SYS_pivot_root, ".", ".") == 0, PIVOT);
	must(fchdir(old) == 0 && mount(NULL, ".", NULL, MS_SLAVE | MS_REC, NULL) == 0, PIVOT); // keeps unmounts from the node
	must(umount2(".", MNT_DETACH) == 0 && chdir("/") == 0, PIVOT);
	close(old);
	close(root);
	root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	must(root >= 0, PIVOT);
	if (c.propagation && !(c.propagation & (MS_PRIVATE | MS_SLAVE)))
		must(mount(NULL, "/", NULL, c.propagation, NULL) == 0, PIVOT);
}

static int is_null(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3);
}

// reopen_null replaces standard streams that are the node's /dev/null with the container's.
static void reopen_null(void)
{
	int null = -1;

	for (int fd = 0; c.make_devices && fd < 3; fd++) {
		if (!is_null(fd))
			continue;
		if (null < 0)
			null = open("/dev/null", O_RDWR | O_CLOEXEC | O_NOFOLLOW);
		must(null >= 0 && is_null(null) && dup2(null, fd) == fd, DEVICE);
	}
	if (null >= 0)
		close(null);
}

// make_directory creates the working directory and its parents.
static void make_directory(void)
{
	char *path = strdup(r.cwd);

	must(path != NULL, DIRECTORY);
	for (char *p = path + 1;; p++) {
		char was = *p;

		if (was && was != '/')
			continue;
		*p = 0;
		must(mkdir(path, 0755) == 0 || errno == EEXIST || errno == EROFS, DIRECTORY);
		*p = was;
		if (!was)
			break;
	}
	free(path);
}

// attach_console binds the terminal at standard input to /dev/console.
static void attach_console(void)
{
	int dev, file, made;

	if (!(r.flags & TERMINAL))
		return;
	dev = inside("/dev");
	must(dev >= 0, CONSOLE);
	file = openat(dev, "console", O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_RDONLY | O_NONBLOCK | O_NOCTTY, 0666);
	must(file >= 0, CONSOLE);
	made = open_clone(0, "", AT_EMPTY_PATH);
	must(made >= 0 && attach(made, file) == 0, CONSOLE);
	close(made);
	close(file);
	close(dev);
}

static void make_read_only(void)
{
	for (uint32_t i = 0; i < c.nmounts; i++) {
		int fd;

		if (!(c.mounts[i].flags & READ_ONLY_LATE))
			continue;
		fd = inside(c.mounts[i].target);
		must(fd >= 0 && change(fd, 0, MOUNT_ATTR_RDONLY, 0, 0) == 0, MASK);
		close(fd);
	}
	must(!c.read_only || change(root, 0, MOUNT_ATTR_RDONLY, 0, 0) == 0, MASK);
	for (uint32_t i = 0; i < c.nreadonly; i++) {
		int fd = inside(c.readonly[i]), made;

		must(fd >= 0 || errno == ENOENT, MASK);
		if (fd < 0)
			continue;
		made = open_clone(fd, "", AT_EMPTY_PATH | AT_RECURSIVE);
		must(made >= 0 && change(made, 0, MOUNT_ATTR_RDONLY, 0, 0) == 0 && attach(made, fd) == 0, MASK);
		close(made);
		close(fd);
	}
}

// new_mask returns an empty read-only filesystem. One covers all masked directories.
static int new_mask(void)
{
	int context = syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC), made;

	must(context >= 0 && option(context, FSCONFIG_SET_STRING, "source", "tmpfs") == 0, MASK);
	must(option(context, FSCONFIG_SET_STRING, "nr_blocks", "1") == 0 && option(context, FSCONFIG_SET_STRING, "nr_inodes", "1") == 0, MASK);
	must(option(context, FSCONFIG_SET_FLAG, "ro", NULL) == 0 && option(context, FSCONFIG_CMD_CREATE, NULL, NULL) == 0, MASK);
	made = syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY);
	must(made >= 0, MASK);
	close(context);
	return made;
}

static void mask(void)
{
	int null = -1, empty = -1;

	for (uint32_t i = 0; i < c.nmasked; i++) {
		int fd = inside(c.masked[i]), made;

		must(fd >= 0 || errno == ENOENT, MASK);
		if (fd < 0)
			continue;
		if (is_directory(fd)) {
			if (empty < 0)
				empty = made = new_mask();
			else
				made = open_clone(empty, "", AT_EMPTY_PATH);
		} else {
			if (null < 0)
				null = inside("/dev/null");
			must(null >= 0 && is_null(null), MASK);
			made = open_clone(null, "", AT_EMPTY_PATH);
		}
		must(made >= 0 && attach(made, fd) == 0, MASK);
		if (made != empty)
			close(made);
		close(fd);
	}
	if (null >= 0)
		close(null);
	if (empty >= 0)
		close(empty);
}

// --- the process ---

// arrange_container moves the descriptors of a request, which arrive in this order, to their
// numbers. It first moves them out of the way and closes the server's other descriptors.
static void arrange_container(const int *fds, int n, int joins)
{
	int moved[32], k = 0;

	for (int i = 0; i < n; i++) {
		moved[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, MOST);
		must(moved[i] >= 0, READ);
	}
	for (int fd = TALK; fd < MOST; fd++)
		close(fd);
	must(dup3(moved[k++], TALK, O_CLOEXEC) == TALK, READ);
	must(dup3(moved[k++], MOUNTS, O_CLOEXEC) == MOUNTS, READ);
	must(dup3(moved[k++], START, O_CLOEXEC) == START, READ);
	if (r.flags & TERMINAL)
		must(dup3(moved[k++], KEEPER, O_CLOEXEC) == KEEPER, READ);
	else
		must(dup2(moved[k], 1) == 1 && dup2(moved[k + 1], 2) == 2, READ), k += 2;
	if (r.flags & HAS_STDIN)
		must(dup2(moved[k++], 0) == 0, READ);
	for (int i = 0; i < joins; i++)
		must(dup3(moved[k++], JOINED + i, O_CLOEXEC) == JOINED + i, READ);
	for (int i = 0; i < n; i++)
		close(moved[i]);
}

// join_namespaces enters the pod's namespaces, except the user namespace. The PID namespace applies
// only to children of this process.
static void join_namespaces(void)
{
	for (uint32_t i = 0; i < c.njoined; i++) {
		if (c.joined[i] == CLONE_NEWUSER)
			continue;
		must(setns(JOINED + i, c.joined[i]) == 0, NAMESPACE);
		close(JOINED + i);
	}
}

static int joins(uint32_t type)
{
	for (uint32_t i = 0; i < c.njoined; i++)
		if (c.joined[i] == type)
			return JOINED + i;
	return -1;
}

// join_user enters the pod's user namespace as its root, after the last step that needs the node's
// privileges.
static void join_user(void)
{
	int user = joins(CLONE_NEWUSER);

	must(setgroups(0, NULL) == 0, NAMESPACE);
	must(setns(MOUNTS, CLONE_NEWNS) == 0, NAMESPACE);
	stage(user);
	must(setns(user, CLONE_NEWUSER) == 0, NAMESPACE);
	close(user);
	become_root();
}

// begin_in_pids forks the init into another PID namespace, since a process cannot change its own:
// the pod's, or a new one that the user namespace owns.
static void begin_in_pids(void)
{
	int32_t message[] = {'P', 0};

	if (!c.new_pids && joins(CLONE_NEWPID) < 0)
		return;
	message[1] = syscall(SYS_clone, CLONE_PARENT | (c.new_pids ? CLONE_NEWPID : 0), 0, 0, 0, 0);
	must(message[1] >= 0, FORK);
	if (message[1] > 0) {
		tell(message, sizeof(message));
		_exit(0);
	}
}

// leave_namespaces creates the container's own namespaces. Its mount namespace is the starter's.
// With a user namespace it is a copy of that, since the user namespace must own it.
static void leave_namespaces(void)
{
	uint32_t unshared = c.unshared;

	if (r.switches & USERNS)
		unshared |= CLONE_NEWNS;
	else
		must(setns(MOUNTS, CLONE_NEWNS) == 0, NAMESPACE);
	close(MOUNTS);
	must(!unshared || unshare(unshared) == 0, NAMESPACE);
}

// new_keyring joins the container's session keyring and lets its users search it. It does nothing
// more on a kernel without keyrings.
static void new_keyring(void)
{
	enum { SETPERM = 5, DESCRIBE = 6, USER_SEARCH = 0x80000, OTHER_SEARCH = 0x8 };
	char text[256];
	unsigned permissions;
	long ring;

	join_keyring();
	ring = syscall(SYS_keyctl, 0 /* get id */, -3 /* session keyring */, 0);
	if (ring < 0)
		return;
	must(syscall(SYS_keyctl, DESCRIBE, ring, text, sizeof(text)) > 0, KEYRING);
	errno = EBADMSG;
	must(sscanf(text, "%*[^;];%*d;%*d;%x;", &permissions) == 1, KEYRING);
	must(syscall(SYS_keyctl, SETPERM, ring, permissions | (r.switches & USERNS ? OTHER_SEARCH : USER_SEARCH)) == 0, KEYRING);
}

static void set_names(void)
{
	must(!*c.hostname || sethostname(c.hostname, strlen(c.hostname)) == 0, NAMESPACE);
	must(!*c.domainname || setdomainname(c.domainname, strlen(c.domainname)) == 0, NAMESPACE);
}

// await_start reports that the container has been created, and returns when it may start. After
// that, no step can fail with an error that is the caller's fault.
static void await_start(void)
{
	int32_t ready[] = {'R', 0};
	char byte;
	ssize_t n;

	tell(ready, sizeof(ready));
	close(TALK);
	while ((n = read(START, &byte, 1)) < 0 && errno == EINTR)
		;
	if (n != 1)
		_exit(255);
	if (*c.last_cgroup && write(LAST_CGROUP, "0", 1) != 1)
		_exit(255);
}

// refused ends a process whose program the kernel refused to execute, with runc's message.
__attribute__((noreturn)) static void refused(const char *file, const char *why)
{
	dprintf(2, "exec %s: %c%s\n", file, *why | 0x20, why + 1);
	_exit(255);
}

static void begin_container(void)
{
	char *file;

	prctl(PR_SET_NAME, "kuri-start", 0, 0, 0);

	// 1. Steps that need the node's files and privileges. The cgroup with the CPU share is entered
	// last: until its start the container is created at its creator's speed.
	join_cgroups();
	if (*c.last_cgroup) {
		int fd = open(c.last_cgroup, O_WRONLY | O_CLOEXEC);

		must(fd >= 0 && dup3(fd, LAST_CGROUP, O_CLOEXEC) == LAST_CGROUP && close(fd) == 0, CGROUP);
	}
	set_oom_score();
	set_labels();
	give_stdio();
	raise_limits();

	// 2. The namespaces.
	join_namespaces();
	if (r.switches & USERNS)
		join_user();
	begin_in_pids();
	setsid();
	if (r.flags & TERMINAL || r.switches & USERNS)
		hold_self();
	leave_namespaces();
	new_keyring();

	// 3. The root filesystem, built in the starter's mount namespace, which is now the container's.
	prepare_root();
	for (c_mount = 0; c_mount < c.nmounts; c_mount++)
		make_mount(&c.mounts[c_mount]);
	make_devices();
	enter_root();
	reopen_null();
	make_directory();
	make_console();
	attach_console();
	if (r.flags & TERMINAL)
		must(ioctl(0, TIOCSCTTY, 0) == 0, CONSOLE);
	umask(r.switches & UMASK ? r.umask : 022);
	set_names();
	make_read_only();
	mask();
	close(root);

	// 4. The user and its privileges.
	if (r.switches & NNP)
		must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, CAPABILITY);
	drop_privileges();
	if (r.flags & TERMINAL || r.switches & USERNS)
		close(SELF);
	if (filter_takes() && r.filter_early)
		load_privileged_filter();
	lower_limits();
	file = program();

	// 5. The start line. Later errors are reported by the exit code.
	await_start();
	if (filter_takes() && !r.filter_early)
		load_privileged_filter();
	if (!filter_takes())
		load_filter();
	execve(file, r.args, r.env);
	refused(file, strerror(errno));
}
