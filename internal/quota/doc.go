// Package quota limits the disk usage of a directory with the project quotas of ext4 and xfs.
//
// A project is a number that a directory and everything created in it carry. The filesystem counts
// bytes and inodes for each number, and refuses writes above its limits (EDQUOT, or ENOSPC on xfs)
// without affecting other projects.
//
// The package owns nothing on disk except the projects of the directories given to
// [Projects.Limit]. There is no list of projects that could be lost. A number is free if the
// filesystem counts nothing for it and has no limit for it. [Release] reads the number from the
// directory itself, so any process can clean up after a crash when it removes the directory.
//
// A Projects is safe for concurrent use. Its lock is held while a free number is found and taken:
// for a few system calls. Quotas survive a restart and a reboot.
//
// Numbers are random, from a range that only Kuri uses. So Kuri does not interfere with other users
// of project quotas on the filesystem (a kubelet that counts emptyDirs, another kurid), and it
// never changes an administrator's project.
//
// The package needs Linux 5.14 for quotactl_fd(2), which needs no device node.
package quota
