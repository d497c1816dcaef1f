package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
)

// Inventory has the pods and containers of a runtime, for resolving names.
type Inventory struct {
	Pods       []*runtimeapi.PodSandbox
	Containers []*runtimeapi.Container
}

func TakeInventory(ctx context.Context, rt *client.Runtime) (*Inventory, error) {
	pods, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	containers, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return &Inventory{Pods: pods.Items, Containers: containers.Containers}, nil
}

// IDPrefix marks a name as an id or the prefix of one: "id:3f".
const IDPrefix = "id:"

// MinID is the minimum length of a prefix of an id without [IDPrefix]. A shorter text may be a name
// by chance: "e9", "cafe".
const MinID = 8

// IDText returns the id, or prefix of an id, that name may stand for. ok is false if it can only be a name.
func IDText(name string) (id string, ok bool) {
	if id, ok := strings.CutPrefix(name, IDPrefix); ok {
		return id, id != ""
	}
	return name, len(name) >= MinID
}

// withID returns the element whose id is name, or else all elements whose ids have name as their prefix.
func withID[T interface{ GetId() string }](name string, among []T) []T {
	var out []T
	prefix, ok := IDText(name)
	for _, e := range among {
		if e.GetId() == prefix {
			return []T{e}
		}
		if ok && strings.HasPrefix(e.GetId(), prefix) {
			out = append(out, e)
		}
	}
	return out
}

// Pod resolves name to a pod: by its name, by namespace/name, or by a prefix of its id.
//
// The error is a [NotFoundError], or another that lists the candidates if name is ambiguous.
func (v *Inventory) Pod(name string) (*runtimeapi.PodSandbox, error) {
	switch found := v.podsMeant(name); len(found) {
	case 0:
		return nil, v.missing(name, "pod")
	case 1:
		return found[0], nil
	default:
		return nil, Ambiguous(name, "pods", Texts(found, PodText))
	}
}

// podsMeant returns the pods that name may mean. Names take precedence over ids.
func (v *Inventory) podsMeant(name string) []*runtimeapi.PodSandbox {
	if found := v.PodsNamed(name); len(found) > 0 {
		return found
	}
	return withID(name, v.Pods)
}

// Container resolves name to a container, running or exited: by its name, by pod/container, by
// namespace/pod/container, by the name of its pod if it is the only one there, or by a prefix of
// its id. Of the attempts at one container it returns the latest. Errors are those of Pod.
func (v *Inventory) Container(name string) (*runtimeapi.Container, error) {
	found, _ := v.containersMeant(name)
	switch len(found) {
	case 0:
		return nil, v.missing(name, "container")
	case 1:
		return found[0], nil
	}
	return nil, Ambiguous(name, "containers", Texts(found, v.ContainerText))
}

// RunningContainer is Container for verbs that need a running one. The name of a pod means its only
// running container, and then only is true. The name of a container means that container whatever
// its state, so that no other one takes its place.
func (v *Inventory) RunningContainer(name string) (c *runtimeapi.Container, only bool, err error) {
	found, ofPod := v.containersMeant(name)
	if alive := slices.DeleteFunc(slices.Clone(found), IsNotRunning); ofPod && len(found) > 1 && len(alive) == 1 {
		return alive[0], true, nil
	}
	if c, err = v.Container(name); err != nil {
		return nil, false, err
	}
	if c.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		return nil, false, fmt.Errorf("%s has exited, and this needs a running one", v.ContainerText(c))
	}
	return c, false, nil
}

// FindRunning is RunningContainer, and reports the chosen container of a pod on standard error
// unless it is obvious.
func (c *CLI) FindRunning(have *Inventory, name string) (*runtimeapi.Container, error) {
	ct, only, err := have.RunningContainer(name)
	if only {
		fmt.Fprintf(c.Err, "kuri: container %s, the only one of %s that runs\n", Printable(ct.GetMetadata().GetName()),
			Printable(name))
	}
	return ct, err
}

func IsNotRunning(c *runtimeapi.Container) bool {
	return c.State != runtimeapi.ContainerState_CONTAINER_RUNNING
}

// containersMeant returns the containers that name may mean. ofPod is true if name is only that of a pod. The
// name of both a container and a pod means the container if it is in that pod, and otherwise both.
func (v *Inventory) containersMeant(name string) (found []*runtimeapi.Container, ofPod bool) {
	named, pods := v.containersNamed(name), v.PodsNamed(name)
	if len(named)+len(pods) == 0 {
		if found = withID(name, v.Containers); len(found) > 0 {
			return found, false
		}
		pods = withID(name, v.Pods)
	}
	found = named
	for _, p := range pods {
		inside := v.ContainersIn(p, v.Containers)
		if len(named) == 1 && slices.Contains(inside, named[0]) {
			continue
		}
		for _, c := range inside {
			if !slices.Contains(found, c) {
				found = append(found, c)
			}
		}
	}
	return found, len(named) == 0 && len(pods) == 1
}

// PodOrContainer resolves name to a pod or a container; the other result is nil. Pods' names take precedence.
func (v *Inventory) PodOrContainer(name string) (*runtimeapi.PodSandbox, *runtimeapi.Container, error) {
	if pods := v.PodsNamed(name); len(pods) > 1 {
		return nil, nil, Ambiguous(name, "pods", Texts(pods, PodText))
	} else if len(pods) == 1 {
		return pods[0], nil, nil
	}
	found := v.containersNamed(name)
	var pods []*runtimeapi.PodSandbox
	if len(found) == 0 {
		found, pods = withID(name, v.Containers), withID(name, v.Pods)
	}
	switch {
	case len(found)+len(pods) == 0:
		return nil, nil, v.missing(name, "pod and no container")
	case len(found)+len(pods) > 1:
		return nil, nil, Ambiguous(name, "pods or containers", append(Texts(pods, PodText), Texts(found, v.ContainerText)...))
	case len(pods) == 1:
		return pods[0], nil, nil
	}
	return nil, found[0], nil
}

// missing returns the error for an unknown name. It says so if the name is too short a prefix of an id.
func (v *Inventory) missing(name, kind string) error {
	if _, ok := IDText(name); !ok && name != "" {
		n := len(withID(IDPrefix+name, v.Containers)) + len(withID(IDPrefix+name, v.Pods))
		if n > 0 {
			return NotFound("there is no %s %q (an id is taken for one from %d characters on, or with a prefix: %s%s)", kind,
				name, MinID, IDPrefix, name)
		}
	}
	if pods := v.podsMeant(name); len(pods) > 0 && kind == "container" {
		return NotFound("pod %s has no containers", PodName(pods[0]))
	}
	return NotFound("there is no %s %q%s", kind, name, KindHint(name))
}

// PodsNamed returns the pods with a name, with or without a namespace. Of several sandboxes of one
// pod it returns the ready one, or the latest.
func (v *Inventory) PodsNamed(name string) []*runtimeapi.PodSandbox {
	var out []*runtimeapi.PodSandbox
	for _, p := range v.Pods {
		m := p.GetMetadata()
		if name == "" || name != m.GetName() && name != m.GetNamespace()+"/"+m.GetName() {
			continue
		}
		i := slices.IndexFunc(out, func(o *runtimeapi.PodSandbox) bool { return PodKey(o) == PodKey(p) })
		switch {
		case i < 0:
			out = append(out, p)
		case newer(p, out[i]):
			out[i] = p
		}
	}
	return out
}

// PodKey returns the key that all sandboxes of one pod share.
func PodKey(p *runtimeapi.PodSandbox) string {
	return p.GetMetadata().GetNamespace() + "/" + p.GetMetadata().GetName()
}

// newer reports whether p rather than than is the current sandbox of their pod: the ready one, or
// the one created later.
func newer(p, than *runtimeapi.PodSandbox) bool {
	if p.GetState() != than.GetState() {
		return p.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return p.GetCreatedAt() > than.GetCreatedAt()
}

// containersNamed returns the containers with a name, which may be prefixed with the name of a pod
// or a prefix of a pod's id. Of a container in several sandboxes of one pod it returns the one in
// the current sandbox.
func (v *Inventory) containersNamed(name string) []*runtimeapi.Container {
	podName, own := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		podName, own = name[:i], name[i+1:]
	}
	if own == "" {
		return nil
	}
	if podName == "" {
		return v.current(slices.DeleteFunc(latest(v.Containers),
			func(c *runtimeapi.Container) bool { return c.GetMetadata().GetName() != own }))
	}
	var out []*runtimeapi.Container
	for _, p := range v.podsMeant(podName) {
		for _, c := range v.ContainersIn(p, v.Containers) {
			if c.GetMetadata().GetName() == own {
				out = append(out, c)
			}
		}
	}
	return out
}

// current keeps, of containers with one name, only the one in the current sandbox of each pod.
func (v *Inventory) current(list []*runtimeapi.Container) []*runtimeapi.Container {
	last := map[string]*runtimeapi.Container{}
	key := func(c *runtimeapi.Container) string {
		if p := v.PodOf(c); p != nil {
			return PodKey(p)
		}
		return IDPrefix + c.PodSandboxId
	}
	for _, c := range list {
		have := last[key(c)]
		if have == nil || newer(v.PodOf(c), v.PodOf(have)) {
			last[key(c)] = c
		}
	}
	return slices.DeleteFunc(slices.Clone(list), func(c *runtimeapi.Container) bool { return last[key(c)] != c })
}

// ContainersIn returns the latest attempts at the containers of a pod, in order of creation.
func (v *Inventory) ContainersIn(p *runtimeapi.PodSandbox, among []*runtimeapi.Container) []*runtimeapi.Container {
	var out []*runtimeapi.Container
	for _, c := range latest(among) {
		if c.PodSandboxId == p.Id {
			out = append(out, c)
		}
	}
	slices.SortStableFunc(out,
		func(a, b *runtimeapi.Container) int { return int(min(max(a.CreatedAt-b.CreatedAt, -1), 1)) })
	return out
}

// latest removes containers that a later attempt has replaced.
func latest(list []*runtimeapi.Container) []*runtimeapi.Container {
	type key struct{ pod, name string }
	last := map[key]*runtimeapi.Container{}
	for _, c := range list {
		k := key{c.PodSandboxId, c.GetMetadata().GetName()}
		if have, ok := last[k]; !ok || c.GetMetadata().GetAttempt() > have.GetMetadata().GetAttempt() {
			last[k] = c
		}
	}
	return slices.DeleteFunc(slices.Clone(list), func(c *runtimeapi.Container) bool {
		return last[key{c.PodSandboxId, c.GetMetadata().GetName()}] != c
	})
}

// PodOf returns the pod of a container, or nil if the runtime does not list it.
func (v *Inventory) PodOf(c *runtimeapi.Container) *runtimeapi.PodSandbox {
	for _, p := range v.Pods {
		if p.Id == c.PodSandboxId {
			return p
		}
	}
	return nil
}

func Ambiguous(name, kind string, candidates []string) error {
	slices.Sort(candidates)
	const most = 10
	if rest := len(candidates) - most; rest > 0 {
		candidates = append(candidates[:most], fmt.Sprintf("and %d more", rest))
	}
	return fmt.Errorf("%q means several %s, name one:\n  %s", name, kind, strings.Join(candidates, "\n  "))
}

// PodName returns namespace/name, without the namespace if it is the default one.
func PodName(p *runtimeapi.PodSandbox) string {
	m := p.GetMetadata()
	if ns := m.GetNamespace(); ns != "" && ns != "default" {
		return ns + "/" + m.GetName()
	}
	return m.GetName()
}

func PodText(p *runtimeapi.PodSandbox) string {
	return fmt.Sprintf("%s/%s (pod %s)", p.GetMetadata().GetNamespace(), p.GetMetadata().GetName(), TrimID(p.Id, false))
}

func (v *Inventory) ContainerText(c *runtimeapi.Container) string {
	name := c.GetMetadata().GetName()
	if p := v.PodOf(c); p != nil {
		name = p.GetMetadata().GetNamespace() + "/" + p.GetMetadata().GetName() + "/" + name
	}
	return fmt.Sprintf("%s (container %s)", name, TrimID(c.Id, false))
}

func Texts[T any](list []T, text func(T) string) []string {
	var out []string
	for _, e := range list {
		out = append(out, text(e))
	}
	return out
}
