package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/image"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/node"
	"github.com/kuri-cri/kuri/internal/quota"
	"github.com/kuri-cri/kuri/internal/rootfs"
	"github.com/kuri-cri/kuri/internal/spec"
	"github.com/kuri-cri/kuri/internal/step"
	"github.com/kuri-cri/kuri/internal/undo"
)

// Create creates a container whose process waits for Start. It keeps cfg, which must not change any more. A repeated
// call for the same container (pod, name and attempt) joins the work in flight, or returns the container that is
// already created. Error kinds: NotFound (no such pod, image or path), Precondition (the pod is not ready), Exists (a
// container with another configuration has the name), Invalid and Unimplemented (a field), Exhausted (the disk is
// full).
func (p *Pods) Create(ctx context.Context, sandboxID string, cfg *runtime.ContainerConfig) (*Container, error) {
	s, err := p.Sandbox(sandboxID)
	if err != nil {
		return nil, err
	}
	m := cfg.GetMetadata()
	if m.GetName() == "" {
		return nil, fault.New(fault.Invalid, "config.metadata.name: a container needs a name")
	}
	if _, err := p.Handler(cfg.GetImage().GetRuntimeHandler()); err != nil {
		return nil, fmt.Errorf("config.image.runtime_handler: %w", err)
	}
	if err := s.settled(ctx); err != nil {
		return nil, err
	}
	id := containerIdentity{s.Record().ID, m.GetName(), m.GetAttempt()}
	c, _, err := p.creates.Do(ctx, id, func(ctx context.Context) (*Container, error) {
		return p.create(ctx, s, cfg)
	})
	if err != nil {
		return nil, fmt.Errorf("create container %s in %s: %w", m.GetName(), s.Record().name(), err)
	}
	if r := c.Record(); !proto.Equal(r.config(), cfg) {
		return nil, fault.New(fault.Exists, "%s is there already with another configuration; remove it first, or ask with a higher attempt", r.name())
	}
	return c, nil
}

func (p *Pods) create(ctx context.Context, s *Sandbox, cfg *runtime.ContainerConfig) (*Container, error) {
	// 1. If the same container is already created, return it. Otherwise keep the pod from being torn down until this is
	// done.
	if c, err := s.named(cfg.GetMetadata()); c != nil || err != nil {
		return c, err
	}
	if err := p.compared(); err != nil {
		return nil, err
	}
	if err := s.begin(); err != nil {
		return nil, err
	}
	defer s.creates.Done()
	if err := p.ensureFiles(s.Record()); err != nil {
		return nil, err
	}
	back := undo.New(ctx)
	defer back.Run()

	// 2. The image. Its layers are held until the container is removed.
	step.Enter(ctx, "image")
	img, lowerdirs, release, err := p.hold(cfg.GetImage(), p.handlerOf(s.Record()))
	if err != nil {
		return nil, err
	}
	back.Add("release the layers of "+img.ID, func(context.Context) error { release(); return nil })

	// 3. The image volumes, held likewise.
	r := newContainerRecord(s.Record(), cfg, img)
	r.ContainerRoot = p.ContainerRoot
	r.CgroupsPath = p.Driver.Path(s.Record().CgroupParent, p.ScopePrefix, r.ID)
	volumes, err := p.imageVolumes(r, p.handlerOf(s.Record()))
	if err != nil {
		return nil, err
	}
	back.Add("release the layers of its image volumes", func(context.Context) error { volumes.release(); return nil })

	// 4. The SELinux labels.
	if err := p.labelContainer(s.Record(), r); err != nil {
		return nil, err
	}
	back.Add("release the labels of "+r.name(), func(context.Context) error { p.labels.release(r.ID); return nil })

	// 5. Resolve the request for this node and this image.
	step.Enter(ctx, "resolve")
	oci, err := p.resolve(s, r, img, lowerdirs, volumes)
	if err != nil {
		return nil, err
	}

	// 6. The intent, the directories and the bundle.
	step.Enter(ctx, "bundle")
	back.Add("remove the directories of "+r.name(), func(context.Context) error { return p.removeContainerDirs(r) })
	if err := p.writeBundle(s.Record(), r, oci); err != nil {
		return nil, fault.As(diskKind(err), err)
	}
	failpoint.At("create container: bundle written")
	c := newContainer(p.paths, s, r)
	c.release = func() { release(); volumes.release() }
	defer p.expect(c.Record())()

	// 7. The process, in its namespaces, up to the point where it waits for Start.
	step.Enter(ctx, "process")
	back.Add("delete "+r.name()+" at the keeper", func(ctx context.Context) error { return p.Keeper.Delete(ctx, r.ID) })
	made, failure, err := p.makeProcess(ctx, s.Record(), r, lowerdirs, volumes)
	if err != nil {
		return nil, err
	}
	failpoint.At("create container: process made")

	// 8. Created, unless the pod was stopped meanwhile.
	step.Enter(ctx, "record")
	if err := c.become(Created, func(r *ContainerRecord) {
		r.Pid = int(made.Pid)
		r.CreatedAt = s.createdAfter(r.config().GetMetadata().GetName(), made.CreatedAt)
		r.StartFailure, r.Init = failure, made.Init
	}); err != nil {
		return nil, err
	}
	if err := p.join(s, c); err != nil {
		return nil, err
	}
	failpoint.At("create container: recorded")
	back.Release()
	return c, nil
}

// makeProcess has the keeper create the container's process. If the process cannot be started, failure says why: Start
// reports it, so that a pod that never restarts fails, as with containerd.
func (p *Pods) makeProcess(ctx context.Context, s *SandboxRecord, r *ContainerRecord, lowerdirs []string, volumes *imageVolumes) (made *api.Container, failure string, err error) {
	req := p.containerRequest(s, r)
	req.Rootfs, req.Overlays = p.rootfs(r, lowerdirs, volumes), volumes.overlays
	made, err = p.Keeper.Create(ctx, req)
	if errors.Is(err, fault.Unstartable) {
		return &api.Container{CreatedAt: time.Now().UnixNano()}, err.Error(), nil
	}
	return made, "", err
}

// rootfs returns the parts from which the keeper mounts a container's root filesystem.
func (p *Pods) rootfs(r *ContainerRecord, lowerdirs []string, volumes *imageVolumes) *api.Rootfs {
	root := &api.Rootfs{Lowerdirs: lowerdirs, Upperdir: p.paths.upper(r), Workdir: p.paths.work(r)}
	for _, dir := range volumes.dirs {
		root.Directories = append(root.Directories, strings.TrimPrefix(dir, "/"))
	}
	return root
}

// named returns the container with that name and attempt if it waits for Start, or nil if there is none. A container
// that was already started keeps its name until it is removed: the error is of kind Exists.
func (s *Sandbox) named(m *runtime.ContainerMetadata) (*Container, error) {
	for _, c := range s.list() {
		r := c.Record()
		if have := r.config().GetMetadata(); have.GetName() != m.GetName() || have.GetAttempt() != m.GetAttempt() {
			continue
		}
		if r.State == Created {
			return c, nil
		}
		return nil, fault.New(fault.Exists, "%s has this name and attempt %d and is %s; remove it first, or ask with a higher attempt", r.name(), m.GetAttempt(), r.State)
	}
	return nil, nil
}

// begin keeps the sandbox from being torn down until creates.Done. The error is of kind Precondition if it is not
// ready.
func (s *Sandbox) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.Record().ready(); err != nil {
		return err
	}
	s.creates.Add(1)
	return nil
}

// join makes the container visible. The error is of kind Precondition if its pod was stopped meanwhile.
func (p *Pods) join(s *Sandbox, c *Container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.Record().ready(); err != nil {
		return fmt.Errorf("meanwhile %w", err)
	}
	s.containers[c.Record().ID] = c
	s.noteCgroup(c.Record())
	p.addContainer(c)
	return nil
}

// hold finds an image and keeps its layers from being removed until release. A reference stands for the image that was
// pulled for the platform of the runtime handler. The handler is the one in the image spec, else the pod's.
func (p *Pods) hold(want *runtime.ImageSpec, handler Handler) (img *image.Image, lowerdirs []string, release func(), err error) {
	if want.GetImage() == "" {
		return nil, nil, nil, fault.New(fault.Invalid, "config.image.image: a container needs an image")
	}
	if own := want.GetRuntimeHandler(); own != "" {
		handler = p.Handlers[own]
	}
	if img, err = p.Images.GetFor(want.GetImage(), handler.Platform); err != nil {
		return nil, nil, nil, fmt.Errorf("%w; pull it first", err)
	}
	release = p.Layers.Hold(img.DiffIDs)
	if lowerdirs, err = p.Layers.Lowerdirs(img.DiffIDs); err != nil {
		release()
		return nil, nil, nil, err
	}
	return img, lowerdirs, release, nil
}

func newContainerRecord(s *SandboxRecord, cfg *runtime.ContainerConfig, img *image.Image) *ContainerRecord {
	r := &ContainerRecord{
		ID:        newID(),
		SandboxID: s.ID,
		State:     Creating,
		Config:    message[*runtime.ContainerConfig]{cfg},
		ImageID:   img.ID,
		Layers:    img.DiffIDs,
		CreatedAt: time.Now().UnixNano(),
	}
	r.configJSON = encodeConfig(r.Config)
	r.ImageRef = imageRef(img)
	// A kubelet compares the name in the status with the one in the pod spec: report what the user wrote, if we know
	// it.
	r.ImageName = cfg.GetImage().GetUserSpecifiedImage()
	if r.ImageName == "" {
		r.ImageName = cfg.GetImage().GetImage()
	}
	return r
}

// imageRef returns a digest reference by which an image can be pulled again, else the image's id.
func imageRef(img *image.Image) string {
	if len(img.Digests) > 0 {
		return img.Digests[0]
	}
	return img.ID
}

// resolve looks up the users, paths, devices and target process of the request on this node, and translates the request
// into an OCI spec.
func (p *Pods) resolve(s *Sandbox, r *ContainerRecord, img *image.Image, lowerdirs []string, volumes *imageVolumes) (*specs.Spec, error) {
	cfg := r.config()
	security := cfg.GetLinux().GetSecurityContext()
	user, err := rootfs.User(lowerdirs, security, img.Config.User)
	if err != nil {
		return nil, err
	}
	volumes.find(r, img, lowerdirs)
	mounts, err := rootfs.Mounts(cfg.GetMounts(), p.CreateHostPaths)
	if err != nil {
		return nil, err
	}
	for i, source := range volumes.sources {
		mounts[i].Source = source
	}
	devices, err := rootfs.Devices(cfg.GetDevices(), security.GetPrivileged())
	if err != nil {
		return nil, err
	}
	target, err := p.target(s, security.GetNamespaceOptions())
	if err != nil {
		return nil, err
	}
	seccomp, err := localhostSeccomp(cfg)
	if err != nil {
		return nil, err
	}
	facts, err := p.loadAppArmor(security)
	if err != nil {
		return nil, err
	}
	signal, signalName, err := spec.StopSignal(cfg, img.Config)
	if err != nil {
		return nil, err
	}
	sandbox := s.Record()
	if r.LogPath, err = spec.LogPath(sandbox.config(), cfg); err != nil {
		return nil, err
	}
	r.User, r.StopSignal, r.StopName = user, int(signal), signalName.String()
	if err := p.limitWritable(sandbox, r); err != nil {
		return nil, err
	}

	in := p.specInput(s, r)
	in.Image, in.Node, in.TargetPID, in.LocalhostSeccomp = img.Config, facts, target, seccomp
	in.User, in.Volumes, in.Mounts, in.Devices = user, volumes.dirs, mounts, devices
	if spec.AsksRDT(in.Pod, cfg) {
		in.Node.RDT = node.RDT()
	}
	oci, notes, err := spec.Container(in)
	if err != nil {
		return nil, err
	}
	for _, note := range notes {
		slog.Warn("part of the request has no effect on this node", "container", r.name(), "pod", sandbox.name(), "note", note)
	}
	if err := p.injectDevices(oci, cfg, sandbox.config()); err != nil {
		return nil, err
	}
	return oci, p.relabel(r, mounts)
}

// specInput returns the part of a container's OCI spec that comes from the records and the configuration.
func (p *Pods) specInput(s *Sandbox, r *ContainerRecord) spec.Input {
	sandbox := s.Record()
	in := spec.Input{
		Pod: sandbox.config(), PodID: sandbox.ID,
		Container: r.config(), ContainerID: r.ID, ImageName: r.ImageName,
		Namespaces:  *s.namespaces.Load(),
		CgroupsPath: r.CgroupsPath,
		Rootfs:      p.paths.rootfs(r.ID),
		Shm:         "/dev/shm",
		ResolvConf:  p.paths.podFile(sandbox.ID, "resolv.conf"),
		Hosts:       p.paths.podFile(sandbox.ID, "hosts"),
		Hostname:    p.paths.podFile(sandbox.ID, "hostname"),
		Labels:      r.Labels,
		Ulimits:     p.Ulimits,
		PidsLimit:   p.PidsLimit,
	}
	if namespaces(sandbox.config()).GetIpc() != runtime.NamespaceMode_NODE {
		in.Shm = p.paths.shm(sandbox.ID)
	}
	return in
}

// limitWritable stores the limits of the container's writable layer in the record. The error is of kind Unimplemented
// if a limit is requested and the filesystem has no quotas.
func (p *Pods) limitWritable(s *SandboxRecord, r *ContainerRecord) error {
	limits, err := spec.WritableLayer(s.config(), r.config().GetMetadata().GetName(), p.WritableLayer)
	if err != nil || limits == (spec.WritableLimits{}) {
		return err
	}
	place := p.paths.podDir(s.ID)
	if r.ContainerRoot != "" {
		place = r.ContainerRoot
	}
	if err := quota.Check(place); err != nil {
		return fmt.Errorf("limit the writable layer: %w", err)
	}
	r.Writable = &limits
	return nil
}

// target returns the first process of the container whose PID namespace is to be shared, 0 if none is.
func (p *Pods) target(s *Sandbox, ns *runtime.NamespaceOption) (int32, error) {
	if ns.GetPid() != runtime.NamespaceMode_TARGET {
		return 0, nil
	}
	c, err := p.Container(ns.GetTargetId())
	if err != nil {
		return 0, fmt.Errorf("namespace_options.target_id: %w", err)
	}
	r := c.Record()
	if r.SandboxID != s.Record().ID {
		return 0, fault.New(fault.Invalid, "namespace_options.target_id: %s is in another pod", r.name())
	}
	if r.State != Running {
		return 0, fault.New(fault.Precondition, "namespace_options.target_id: %s is %s, not running", r.name(), r.State)
	}
	return int32(r.Pid), nil
}

// seccompLimit bounds the size of a seccomp profile, in bytes.
const seccompLimit = 1 << 20

// localhostSeccomp reads the seccomp profile file that a container names. It returns nil if the container names none.
func localhostSeccomp(cfg *runtime.ContainerConfig) ([]byte, error) {
	path, err := spec.SeccompFile(cfg)
	if path == "" || err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "the seccomp profile %s is not on this node; put it there first", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the seccomp profile: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > seccompLimit {
		return nil, fault.New(fault.Invalid, "the seccomp profile %s is not a file of at most %d bytes", path, seccompLimit)
	}
	return os.ReadFile(path)
}

// writeBundle creates the container's first record, its directories, and the bundle that the keeper reads.
func (p *Pods) writeBundle(s *SandboxRecord, r *ContainerRecord, oci *specs.Spec) error {
	for _, dir := range []string{p.paths.containerDir(r.SandboxID, r.ID), p.paths.bundle(r.SandboxID, r.ID)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make the container's directories: %w", err)
		}
	}
	// The record comes first: it says where the writable layer is.
	if err := p.paths.writeContainer(r); err != nil {
		return err
	}
	failpoint.At("create container: intent recorded")
	if err := p.makeWritable(s, r); err != nil {
		return err
	}
	failpoint.At("create container: writable layer made")
	if err := makeLogDir(s.config().GetLogDirectory(), r.LogPath); err != nil {
		return err
	}
	body, err := json.Marshal(oci)
	if err != nil {
		return fmt.Errorf("encode the OCI spec: %w", err)
	}
	if err := os.WriteFile(filepath.Join(p.paths.bundle(r.SandboxID, r.ID), "config.json"), body, 0o600); err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	return nil
}
