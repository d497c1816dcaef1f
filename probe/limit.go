package probe

import "golang.org/x/sys/unix"

var limitRows = []row{
	{"limits", "open files", (*machine).openFiles, "kurid and containers run out of descriptors",
		"LimitNOFILE=1048576 in the unit; sysctl -w fs.nr_open=1048576"},
	{"limits", "processes", func(m *machine) Result { return m.atLeast("/proc/sys/kernel/pid_max", 32768) },
		"processes cannot be made on a full node", "sysctl -w kernel.pid_max=4194304"},
	{"limits", "threads", func(m *machine) Result { return m.atLeast("/proc/sys/kernel/threads-max", 16384) },
		"threads cannot be made on a full node", "sysctl -w kernel.threads-max=65536"},
	{"limits", "inotify instances",
		func(m *machine) Result { return m.atLeast("/proc/sys/fs/inotify/max_user_instances", 512) },
		"kubelet and log agents fail with \"too many open files\"", "sysctl -w fs.inotify.max_user_instances=8192"},
	{"limits", "inotify watches", func(m *machine) Result {
		return m.atLeast("/proc/sys/fs/inotify/max_user_watches",
			65536)
	},
		"kubelet and log agents fail with \"no space left on device\"", "sysctl -w fs.inotify.max_user_watches=524288"},
	{"limits", "keyrings", func(m *machine) Result { return m.atLeast("/proc/sys/kernel/keys/maxkeys", 200) },
		"containers of one user fail with \"disk quota exceeded\"", "sysctl -w kernel.keys.maxkeys=2000"},
	{"limits", "memory maps", func(m *machine) Result { return m.atLeast("/proc/sys/vm/max_map_count", 65530) },
		"databases refuse to start", "sysctl -w vm.max_map_count=262144"},
}

// atLeast checks the minimum of a kernel parameter.
func (m *machine) atLeast(file string, enough int64) Result {
	n, known := m.number(file)
	switch {
	case !known:
		return unknown("%s cannot be read", file)
	case n < enough:
		return limited("%d, and %d or more is better", n, enough)
	}
	return ok("%d", n)
}

func (m *machine) openFiles() Result {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return unknown("%v", err)
	}
	return judgeFiles(l.Max)
}

func judgeFiles(hard uint64) Result {
	switch {
	case hard < 4096:
		return missing("%d at most", hard)
	case hard < 65536:
		return limited("%d at most, and 65536 or more is better", hard)
	}
	return ok("%d at most", hard)
}
