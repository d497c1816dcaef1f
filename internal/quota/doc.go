// Package quota limits what a directory takes on its filesystem, by the project quotas of ext4 and xfs.
//
// A project is a number that a directory and all that is made in it carry; the filesystem counts bytes and inodes for
// each number and refuses what is above its limits (EDQUOT, or ENOSPC on xfs) to whoever writes, without a look at other
// projects.
//
// The package owns nothing on disk but the project of each directory that [Projects.Limit] was given. There is no list
// of projects that could be lost: a number is free when the filesystem counts nothing for it and knows no limit of it. A
// directory is its own record, and [Release] finds the number there; so what a crash leaves behind is given back by who
// removes the directory, in any process, at any time.
//
// Numbers are random ones of a range that only Kuri uses: other users of project quotas on the same filesystem (a
// kubelet that counts emptyDirs, another kurid) are not disturbed, and an administrator's project above the directories
// is never touched.
//
// Linux 5.14 is needed, for quotactl_fd(2): no device node has to be found.
package quota
