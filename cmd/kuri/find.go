package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
)

// inventory is what a runtime has, for resolving names against it.
type inventory struct {
	pods       []*runtimeapi.PodSandbox
	containers []*runtimeapi.Container
}

func takeInventory(ctx context.Context, rt *client.Runtime) (*inventory, error) {
	pods, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	containers, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return &inventory{pods: pods.Items, containers: containers.Containers}, nil
}

// idPrefix begins a name that can only be an id, or the beginning of one: "id:3f".
const idPrefix = "id:"

// minID is how many characters of an id stand for it without [idPrefix]. Fewer may be a name by chance: "e9", "cafe".
const minID = 8

// idText returns the id, or its beginning, that name may stand for; ok is false where it can be a name only.
func idText(name string) (id string, ok bool) {
	if id, ok := strings.CutPrefix(name, idPrefix); ok {
		return id, id != ""
	}
	return name, len(name) >= minID
}

// withID returns the element whose id is the one that name stands for, or all whose ids begin so.
func withID[T interface{ GetId() string }](name string, among []T) []T {
	var out []T
	prefix, ok := idText(name)
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

// pod returns the pod that name means: by its name, by namespace/name, or by the beginning of its id.
//
// Errors: notFoundError; another when the name means several, with their names.
func (v *inventory) pod(name string) (*runtimeapi.PodSandbox, error) {
	switch found := v.podsMeant(name); len(found) {
	case 0:
		return nil, v.missing(name, "pod")
	case 1:
		return found[0], nil
	default:
		return nil, ambiguous(name, "pods", texts(found, podText))
	}
}

// podsMeant returns the pods that name may mean. Names come before ids.
func (v *inventory) podsMeant(name string) []*runtimeapi.PodSandbox {
	if found := v.podsNamed(name); len(found) > 0 {
		return found
	}
	return withID(name, v.pods)
}

// container returns the container that name means, whether it runs or has exited: by its name, by pod/container, by
// namespace/pod/container, by the name of its pod when it is alone there, or by the beginning of its id. Of the attempts
// at one container it is the latest. Errors are as those of pod.
func (v *inventory) container(name string) (*runtimeapi.Container, error) {
	found, _ := v.containersMeant(name)
	switch len(found) {
	case 0:
		return nil, v.missing(name, "container")
	case 1:
		return found[0], nil
	}
	return nil, ambiguous(name, "containers", texts(found, v.containerText))
}

// running is container for what needs a running one. In a pod that is named by its own name the only running container is
// meant, and only is true; a container that is named itself is meant whatever its state, so that no other one takes its place.
func (v *inventory) running(name string) (c *runtimeapi.Container, only bool, err error) {
	found, ofPod := v.containersMeant(name)
	if alive := slices.DeleteFunc(slices.Clone(found), isNotRunning); ofPod && len(found) > 1 && len(alive) == 1 {
		return alive[0], true, nil
	}
	if c, err = v.container(name); err != nil {
		return nil, false, err
	}
	if c.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		return nil, false, fmt.Errorf("%s has exited, and this needs a running one", v.containerText(c))
	}
	return c, false, nil
}

// runningContainer is running, and says on standard error which container of a pod is meant where that is not obvious.
func (c *cli) runningContainer(have *inventory, name string) (*runtimeapi.Container, error) {
	ct, only, err := have.running(name)
	if only {
		fmt.Fprintf(c.err, "kuri: container %s, the only one of %s that runs\n", printable(ct.GetMetadata().GetName()), printable(name))
	}
	return ct, err
}

func isNotRunning(c *runtimeapi.Container) bool {
	return c.State != runtimeapi.ContainerState_CONTAINER_RUNNING
}

// containersMeant returns the containers that name may mean, ofPod where the name is that of a pod alone. A name that is a
// container's and a pod's means the container where it is in that pod, and else both.
func (v *inventory) containersMeant(name string) (found []*runtimeapi.Container, ofPod bool) {
	named, pods := v.containersNamed(name), v.podsNamed(name)
	if len(named)+len(pods) == 0 {
		if found = withID(name, v.containers); len(found) > 0 {
			return found, false
		}
		pods = withID(name, v.pods)
	}
	found = named
	for _, p := range pods {
		inside := v.in(p, v.containers)
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

// either returns the pod or the container that name means, with the other nil. A pod's name comes before a container's.
func (v *inventory) either(name string) (*runtimeapi.PodSandbox, *runtimeapi.Container, error) {
	if pods := v.podsNamed(name); len(pods) > 1 {
		return nil, nil, ambiguous(name, "pods", texts(pods, podText))
	} else if len(pods) == 1 {
		return pods[0], nil, nil
	}
	found := v.containersNamed(name)
	var pods []*runtimeapi.PodSandbox
	if len(found) == 0 {
		found, pods = withID(name, v.containers), withID(name, v.pods)
	}
	switch {
	case len(found)+len(pods) == 0:
		return nil, nil, v.missing(name, "pod and no container")
	case len(found)+len(pods) > 1:
		return nil, nil, ambiguous(name, "pods or containers", append(texts(pods, podText), texts(found, v.containerText)...))
	case len(pods) == 1:
		return pods[0], nil, nil
	}
	return nil, found[0], nil
}

// missing is the error for a name that means nothing. An id's beginning that is too short to be taken for one is named.
func (v *inventory) missing(name, kind string) error {
	if _, ok := idText(name); !ok && name != "" {
		n := len(withID(idPrefix+name, v.containers)) + len(withID(idPrefix+name, v.pods))
		if n > 0 {
			return notFound("there is no %s %q (an id is taken for one from %d characters on, or with a prefix: %s%s)", kind, name, minID, idPrefix, name)
		}
	}
	if pods := v.podsMeant(name); len(pods) > 0 && kind == "container" {
		return notFound("pod %s has no containers", podName(pods[0]))
	}
	return notFound("there is no %s %q", kind, name)
}

// podsNamed returns the pods of a name, with or without a namespace before it. Of several sandboxes of one pod it is the
// ready one, or the latest.
func (v *inventory) podsNamed(name string) []*runtimeapi.PodSandbox {
	var out []*runtimeapi.PodSandbox
	for _, p := range v.pods {
		m := p.GetMetadata()
		if name == "" || name != m.GetName() && name != m.GetNamespace()+"/"+m.GetName() {
			continue
		}
		i := slices.IndexFunc(out, func(o *runtimeapi.PodSandbox) bool { return podKey(o) == podKey(p) })
		switch {
		case i < 0:
			out = append(out, p)
		case newer(p, out[i]):
			out[i] = p
		}
	}
	return out
}

// podKey is what all sandboxes of one pod have in common.
func podKey(p *runtimeapi.PodSandbox) string {
	return p.GetMetadata().GetNamespace() + "/" + p.GetMetadata().GetName()
}

// newer reports whether p is more the pod's sandbox of now than another one: the ready one, or the one made later.
func newer(p, than *runtimeapi.PodSandbox) bool {
	if p.GetState() != than.GetState() {
		return p.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return p.GetCreatedAt() > than.GetCreatedAt()
}

// containersNamed returns the containers of a name, which may have the name of a pod before it, or the beginning of the id
// of one. A container that is in several sandboxes of one pod is the one in the sandbox of now.
func (v *inventory) containersNamed(name string) []*runtimeapi.Container {
	podName, own := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		podName, own = name[:i], name[i+1:]
	}
	if own == "" {
		return nil
	}
	if podName == "" {
		return v.current(slices.DeleteFunc(latest(v.containers), func(c *runtimeapi.Container) bool { return c.GetMetadata().GetName() != own }))
	}
	var out []*runtimeapi.Container
	for _, p := range v.podsMeant(podName) {
		for _, c := range v.in(p, v.containers) {
			if c.GetMetadata().GetName() == own {
				out = append(out, c)
			}
		}
	}
	return out
}

// current leaves out, of containers of one name, those that have a later one of the same pod beside them.
func (v *inventory) current(list []*runtimeapi.Container) []*runtimeapi.Container {
	last := map[string]*runtimeapi.Container{}
	key := func(c *runtimeapi.Container) string {
		if p := v.podOf(c); p != nil {
			return podKey(p)
		}
		return idPrefix + c.PodSandboxId
	}
	for _, c := range list {
		have := last[key(c)]
		if have == nil || newer(v.podOf(c), v.podOf(have)) {
			last[key(c)] = c
		}
	}
	return slices.DeleteFunc(slices.Clone(list), func(c *runtimeapi.Container) bool { return last[key(c)] != c })
}

// in returns the latest attempts at the containers of a pod, the first made first.
func (v *inventory) in(p *runtimeapi.PodSandbox, among []*runtimeapi.Container) []*runtimeapi.Container {
	var out []*runtimeapi.Container
	for _, c := range latest(among) {
		if c.PodSandboxId == p.Id {
			out = append(out, c)
		}
	}
	slices.SortStableFunc(out, func(a, b *runtimeapi.Container) int { return int(min(max(a.CreatedAt-b.CreatedAt, -1), 1)) })
	return out
}

// latest leaves out containers that a later attempt has replaced.
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

// podOf returns the pod of a container, nil when the runtime does not list it.
func (v *inventory) podOf(c *runtimeapi.Container) *runtimeapi.PodSandbox {
	for _, p := range v.pods {
		if p.Id == c.PodSandboxId {
			return p
		}
	}
	return nil
}

func ambiguous(name, kind string, candidates []string) error {
	slices.Sort(candidates)
	const most = 10
	if rest := len(candidates) - most; rest > 0 {
		candidates = append(candidates[:most], fmt.Sprintf("and %d more", rest))
	}
	return fmt.Errorf("%q means several %s, name one:\n  %s", name, kind, strings.Join(candidates, "\n  "))
}

// podName returns namespace/name, without the namespace where it is the default one.
func podName(p *runtimeapi.PodSandbox) string {
	m := p.GetMetadata()
	if ns := m.GetNamespace(); ns != "" && ns != "default" {
		return ns + "/" + m.GetName()
	}
	return m.GetName()
}

func podText(p *runtimeapi.PodSandbox) string {
	return fmt.Sprintf("%s/%s (pod %s)", p.GetMetadata().GetNamespace(), p.GetMetadata().GetName(), trim(p.Id, false))
}

func (v *inventory) containerText(c *runtimeapi.Container) string {
	name := c.GetMetadata().GetName()
	if p := v.podOf(c); p != nil {
		name = p.GetMetadata().GetNamespace() + "/" + p.GetMetadata().GetName() + "/" + name
	}
	return fmt.Sprintf("%s (container %s)", name, trim(c.Id, false))
}

func texts[T any](list []T, text func(T) string) []string {
	var out []string
	for _, e := range list {
		out = append(out, text(e))
	}
	return out
}
