// Package creation creates the cgroups of containers and sets their first limits. It uses the cgroup
// library of runc, and takes shortcuts on cgroup v1, where that library makes hundreds of system
// calls for each container. The shortcuts have the same result. Unusual configurations, and all of
// v2, are left to the library.
//
// It is not part of package cgroup because the library is large, and only the OCI runtime needs it.
// The caller removes the cgroups. The package keeps no state except the cache of [Paths], which has
// the only lock.
package creation
