// decode reads one request from the socket at descriptor 3, as the fork server's child does, and
// prints its fields. It is built with the sanitizers. Its first argument is the request's first
// byte, the flags.
#include "../forkserver.c"

static void print_strings(const char *name, char **all, uint32_t count)
{
	printf("%s:", name);
	for (uint32_t i = 0; i < count; i++)
		printf(" [%s]", all[i]);
	printf("\n");
}

static void print_mount(const struct mount_request *m)
{
	printf("mount %u %u [%s] [%s] [%s] %llx %llx %llx %llx %llx %llx", m->kind, m->flags, m->source, m->target, m->type,
	       (unsigned long long)m->set, (unsigned long long)m->clear, (unsigned long long)m->unwanted, (unsigned long long)m->deep_set,
	       (unsigned long long)m->deep_clear, (unsigned long long)m->deep_propagation);
	for (uint32_t i = 0; i < m->npropagation; i++)
		printf(" %x", m->propagation[i]);
	print_strings(" options", m->options, m->noptions);
}

int main(int argc, char **argv)
{
	r.flags = argc > 1 ? atoi(argv[1]) : 0;
	read_request();
	printf("user %u %u umask %o oom %d namespaces %x switches %x\n", r.uid, r.gid, r.umask, r.oom, r.namespaces, r.switches);
	printf("capabilities %llx %llx %llx %llx %llx\n", (unsigned long long)r.bounding, (unsigned long long)r.effective,
	       (unsigned long long)r.permitted, (unsigned long long)r.inheritable, (unsigned long long)r.ambient);
	for (uint32_t i = 0; i < r.ngroups; i++)
		printf("group %u\n", r.groups[i]);
	for (uint32_t i = 0; i < r.nlimits; i++)
		printf("limit %u %llu %llu\n", r.limits[i].type, (unsigned long long)r.limits[i].to.rlim_cur, (unsigned long long)r.limits[i].to.rlim_max);
	printf("cwd [%s] keyring [%s] labels [%s] [%s] cgroup [%s] filter %u\n", r.cwd, r.keyring, r.apparmor, r.selinux, r.own_cgroup, r.nfilter);
	print_strings("env", r.env, r.nenv);
	print_strings("args", r.args, r.nargs);
	print_strings("cgroups", r.cgroups, r.ncgroups);
	if (!(r.flags & CONTAINER))
		return 0;
	printf("root [%s] read-only %u devices %u propagation %x %x unshared %x new pids %u joined %u names [%s] [%s] last [%s] stage [%s]\n", c.root, c.read_only,
	       c.make_devices, c.propagation, c.parent_propagation, c.unshared, c.new_pids, c.njoined, c.hostname, c.domainname,
	       c.last_cgroup, c.stage);
	print_strings("masked", c.masked, c.nmasked);
	print_strings("readonly", c.readonly, c.nreadonly);
	for (uint32_t i = 0; i < c.nmounts; i++)
		print_mount(&c.mounts[i]);
	for (uint32_t i = 0; i < c.ndevices; i++)
		printf("device [%s] %o %u:%u %u %u\n", c.devices[i].path, c.devices[i].mode, c.devices[i].major, c.devices[i].minor,
		       c.devices[i].uid, c.devices[i].gid);
	return 0;
}
