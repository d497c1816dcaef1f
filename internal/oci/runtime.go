package oci

import (
	"context"
	"os"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/namespace"
	"github.com/kuri-cri/kuri/internal/process"
)

// Runtime runs containers. Its verbs are those of the OCI runtime specification. It has two
// implementations, [Embedded] and [Libcontainer], which must pass the conformance suite in package
// ocitest.
//
// A container is named by its ID, which the caller must ensure is a valid file name. The runtime
// keeps a container's records on disk from Create to Delete. A runtime with the same records
// continues with the container, also in a later process.
//
// Verbs that are the same for every runtime are not here. The caller uses the process ID and the
// [cgroup.Group] in a [Created] to signal, kill and freeze a container and to read its usage, and a
// [process.Pidfd] to wait for its end. Processes are children of the calling process, which must
// reap them.
//
// Two verbs on one container must not run at the same time, except for Exec, Copy and Waits. Verbs
// on different containers may. Errors do not name the container, since callers know a better name.
// The error for an unknown ID is of kind NotFound, unless a verb says otherwise. Errors caused by
// the node have the kind of their errno (no descriptors, full disk). The error for a limit that the
// kernel refuses is of kind Precondition.
type Runtime interface {
	// Spec reads config.json of a bundle, as [ReadSpec] does. Specifications share their seccomp
	// profiles, which must not be changed.
	Spec(bundle string) (*specs.Spec, error)

	// Create creates a container (specification: "create"): its process exists and waits at its
	// start line. It must be called on a separate thread, whose mount namespace the container takes
	// over. If spec has id mappings and the path of a user namespace, they must be that namespace's.
	// On the thread, spec's root.path must be the root filesystem, and mounts below the runtime's
	// records must not be visible in other namespaces. The thread's working directory becomes the
	// bundle. The caller keeps ownership of stdio. After an error nothing of the container remains.
	// An error of kind Unstartable is caused by the specification or the image. The steps are
	// reported to the operation in ctx; ctx cancels nothing.
	Create(ctx context.Context, id, bundle string, spec *specs.Spec, systemdCgroup bool, stdio Stdio) (*Created, error)

	// Start lets the process of a created container execute its program (specification: "start").
	// It may call begun once, with the descriptor that releases the process. As long as anyone
	// holds a duplicate of it, Resume can complete the start, also in a later process. The runtime
	// closes the descriptor. ended reports whether the process has ended, and is called from time
	// to time. If the process is not at its start line, the error is of kind Precondition.
	Start(id string, begun func(*os.File), ended func() bool) error

	// Resume completes an interrupted start, with the descriptor that Start passed to begun. It
	// closes f.
	Resume(id string, f *os.File, ended func() bool) error

	// Waits reports whether the process pid of a container is still at its start line.
	Waits(id string, pid int) bool

	// Update changes limits of a created or running container: all requested ones, or none. See
	// [Libcontainer.Update].
	Update(id string, limits *specs.LinuxResources, oomScoreAdj *int) error

	// Executor prepares the execs of a running container, from its bundle and the runtime's record.
	// It is valid until the next Update or Delete, and holds no descriptor.
	Executor(id, bundle string) (*Executor, error)

	// Exec starts args in the running container of x, whose first process is init. seq
	// distinguishes the execs of a container and must not be used again. The process waits at its
	// start line; see [Running]. A runtime without a start line calls unwaiting before the process
	// may run, and returns its error. If ctx ends before that, the process is killed and the error
	// is the cause. In a frozen container Exec waits for the thaw. An error of kind Invalid, here
	// or of [Running.Release], means that the request is wrong: no such program.
	Exec(ctx context.Context, x *Executor, init *process.Pidfd, seq uint64, args []string, stdio Stdio, unwaiting func() error) (*Running, error)

	// Copy starts the copier with args (see copy.c), as Exec starts a command. If there is no
	// copier or the container forbids it, the error is of kind Unimplemented, here or of
	// [Running.Release].
	Copy(ctx context.Context, x *Executor, init *process.Pidfd, seq uint64, args []string, stdio Stdio) (*Running, error)

	// Delete removes the cgroup and the records of a container whose processes have ended
	// (specification: "delete"). It does nothing for an unknown ID. It fails while a process
	// remains, and can be called again.
	Delete(id string) error

	// All returns the IDs of all containers with records, including incomplete ones.
	All() ([]string, error)

	// Left returns the records of a container (specification: "state"). The error is of kind
	// NotFound if there are none or they are incomplete.
	Left(id string) (*Left, error)

	// TakeBack removes the remains of an interrupted Create: processes, the cgroup, the records. It
	// does nothing if there are none. limit bounds the wait for the end of processes.
	TakeBack(id, cgroupsPath string, systemd bool, limit time.Duration) error

	// Pin, Restore and Rehold are for a container that an earlier process has created. Pin keeps
	// its records open, as Create does, so that Restore can write them again if someone removes
	// them. Restore does not change existing records. Rehold watches limits that systemd
	// overwrites, as Create does.
	Pin(id string)
	Restore(id string, pid int, waits bool) error
	Rehold(id string) error

	// CreateUser creates a user namespace with the mapping and, owned by it, the namespaces in flags
	// (CLONE_NEWNET and the like). It returns the pid of a process in them, a child that does
	// nothing; end ends and reaps it. See [namespace.Config].
	CreateUser(flags int, m *namespace.Mapping) (pid int, end func(), err error)

	// Close releases the runtime's memory and descriptors. Containers and their processes continue.
	Close()
}

var (
	_ Runtime = (*Embedded)(nil)
	_ Runtime = (*Libcontainer)(nil)
)
