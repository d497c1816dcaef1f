package oci

import (
	"context"
	"os"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/process"
)

// Runtime runs containers, as the OCI runtime specification names the verbs. It has two implementations, [Embedded] and
// [Libcontainer]; package ocitest has the suite that each has to pass.
//
// A container is named by its ID, of which the caller makes sure that it can be a file name. The runtime keeps records of it
// on disk from Create to Delete; a runtime with the same records, in a later process too, goes on with it.
//
// The verbs that are the same for every runtime are not here: by the process ID and the [cgroup.Group] in a [Created] its
// user signals, kills and freezes a container and reads what it uses, and by a [process.Pidfd] it waits for the end. Processes
// are children of the calling process, which reaps them.
//
// Two verbs on one container must not run at the same time, but for Exec, Copy and Waits; verbs on different containers may.
// Errors do not name the container: their user knows a better name. Those of an ID that is not known are of kind NotFound,
// unless a verb says otherwise; those of the node have the kind of their errno (no descriptors, full disk), and what the kernel does not take of limits is
// of kind Precondition.
type Runtime interface {
	// Create makes a container (specification: "create"): its process exists and waits at its start line. It is called on a
	// thread of its own, whose mount namespace the container takes: in it spec's root.path is the root filesystem, and no
	// other namespace sees what is mounted below the runtime's records. The thread's working directory becomes the bundle.
	// Stdio stays the caller's to close. When Create fails nothing of the container stays, and an error of kind Unstartable
	// says that the specification or the image is why. The operation of ctx is told of the steps; ctx cancels nothing.
	Create(ctx context.Context, id, bundle string, spec *specs.Spec, systemdCgroup bool, stdio Stdio) (*Created, error)

	// Start lets the process of a created container go (specification: "start"). Begun may be called once, with the
	// descriptor that lets it go: as long as anyone has a duplicate of it the start can be brought to its end by Resume, also
	// by a later process. The runtime closes it. Ended reports whether the process has ended; it is asked now and then. One
	// that does not wait at its start line is an error of kind Precondition.
	Start(id string, begun func(*os.File), ended func() bool) error

	// Resume brings a start to its end that was cut off, with the descriptor that Start has given away. It closes that.
	Resume(id string, f *os.File, ended func() bool) error

	// Waits reports whether the process of a container, pid, is at its start line still.
	Waits(id string, pid int) bool

	// Update changes the limits of a container that is created or runs: all that are asked for, or none. See
	// [Libcontainer.Update].
	Update(id string, limits *specs.LinuxResources, oomScoreAdj *int) error

	// Executor prepares the execs of a running container, from its bundle and what the runtime knows of it. It is valid
	// until the next Update or Delete, and holds no descriptor.
	Executor(id, bundle string) (*Executor, error)

	// Exec starts args in the running container of x, whose first process is init. Seq tells concurrent ones of one
	// container apart, and must not be used again. The process waits at its start line, see [Running]. A runtime without one
	// calls unwaiting before the process may run, and an error of unwaiting is Exec's. When ctx ends before that, what has
	// begun is killed and the error is the cause; in a frozen container none is started before it thaws. An error of kind
	// Invalid, here or of [Running.Release], says that the request is wrong: no such program.
	Exec(ctx context.Context, x *Executor, init *process.Pidfd, seq uint64, args []string, stdio Stdio, unwaiting func() error) (*Running, error)

	// Copy starts the copier with args (see copy.c) as Exec starts a command. Where there is none, or the container forbids
	// it, the error is of kind Unimplemented, here or of [Running.Release].
	Copy(ctx context.Context, x *Executor, init *process.Pidfd, seq uint64, args []string, stdio Stdio) (*Running, error)

	// Delete removes the cgroup and the records of a container whose processes have ended (specification: "delete"). An
	// unknown ID is a success. While a process is left it fails, and can be called again.
	Delete(id string) error

	// All lists the IDs of the containers that there are records of, unfinished ones too.
	All() ([]string, error)

	// Left returns what the records say of a container (specification: "state"). The error is of kind NotFound when there
	// are none, or not all.
	Left(id string) (*Left, error)

	// TakeBack removes what a Create has left that was cut off: processes, the cgroup, records. Nothing there is a success.
	// Limit bounds the wait for the end of processes.
	TakeBack(id, cgroupsPath string, systemd bool, limit time.Duration) error

	// Pin, Restore and Rehold are for a container that an earlier process has created. Pin keeps its records open, as Create
	// does, so that Restore can write them again when somebody has removed them; what is there stays as it is. Rehold
	// watches, as Create does, the limits that systemd writes over.
	Pin(id string)
	Restore(id string, pid int, waits bool) error
	Rehold(id string) error

	// Close gives up what the runtime has in memory. Containers and their processes go on.
	Close()
}

var (
	_ Runtime = (*Embedded)(nil)
	_ Runtime = (*Libcontainer)(nil)
)
