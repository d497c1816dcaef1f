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

// pod returns the pod that name means: by name, namespace/name, id, or the beginning of an id.
//
// Errors: notFoundError; another when the name means several, with their names.
func (v *inventory) pod(name string) (*runtimeapi.PodSandbox, error) {
	found := v.podsNamed(name)
	if len(found) == 0 {
		found = v.podsWithID(name)
	}
	switch len(found) {
	case 0:
		return nil, notFound("there is no pod %q", name)
	case 1:
		return found[0], nil
	}
	return nil, ambiguous(name, "pods", texts(found, podText))
}

// container returns the container that name means: by name, pod/container, namespace/pod/container, id, or the beginning
// of an id. A pod's name means its container where the pod has one only. Of the attempts at one container the latest is
// meant. Errors are as those of pod.
func (v *inventory) container(name string) (*runtimeapi.Container, error) {
	return v.containerAmong(name, v.containers)
}

// running is container with running containers preferred where a name means several.
func (v *inventory) running(name string) (*runtimeapi.Container, error) {
	running := slices.DeleteFunc(slices.Clone(v.containers), func(c *runtimeapi.Container) bool {
		return c.State != runtimeapi.ContainerState_CONTAINER_RUNNING
	})
	if c, err := v.containerAmong(name, running); err == nil {
		return c, nil
	}
	return v.container(name)
}

func (v *inventory) containerAmong(name string, among []*runtimeapi.Container) (*runtimeapi.Container, error) {
	found := v.containersNamed(name, among)
	if len(found) == 0 {
		found = withID(name, among)
	}
	if len(found) == 0 {
		for _, p := range v.podsNamed(name) {
			found = append(found, v.in(p, among)...)
		}
	}
	switch len(found) {
	case 0:
		return nil, notFound("there is no container %q", name)
	case 1:
		return found[0], nil
	}
	return nil, ambiguous(name, "containers", texts(found, v.containerText))
}

// either returns the pod or the container that name means, with the other nil. A pod's name comes before a container's.
func (v *inventory) either(name string) (*runtimeapi.PodSandbox, *runtimeapi.Container, error) {
	if pods := v.podsNamed(name); len(pods) > 1 {
		return nil, nil, ambiguous(name, "pods", texts(pods, podText))
	} else if len(pods) == 1 {
		return pods[0], nil, nil
	}
	found := v.containersNamed(name, v.containers)
	var pods []*runtimeapi.PodSandbox
	if len(found) == 0 {
		found, pods = withID(name, v.containers), v.podsWithID(name)
	}
	switch {
	case len(found)+len(pods) == 0:
		return nil, nil, notFound("there is no pod and no container %q", name)
	case len(found)+len(pods) > 1:
		return nil, nil, ambiguous(name, "pods or containers", append(texts(pods, podText), texts(found, v.containerText)...))
	case len(pods) == 1:
		return pods[0], nil, nil
	}
	return nil, found[0], nil
}

// podsNamed returns the pods of a name, with or without a namespace before it. Of several sandboxes of one pod it is the
// ready one, or the latest.
func (v *inventory) podsNamed(name string) []*runtimeapi.PodSandbox {
	var out []*runtimeapi.PodSandbox
	for _, p := range v.pods {
		m := p.GetMetadata()
		if name != m.GetName() && name != m.GetNamespace()+"/"+m.GetName() {
			continue
		}
		i := slices.IndexFunc(out, func(o *runtimeapi.PodSandbox) bool {
			return o.GetMetadata().GetNamespace() == m.GetNamespace()
		})
		switch {
		case i < 0:
			out = append(out, p)
		case out[i].State == p.State && p.CreatedAt > out[i].CreatedAt,
			out[i].State != p.State && p.State == runtimeapi.PodSandboxState_SANDBOX_READY:
			out[i] = p
		}
	}
	return out
}

// podsWithID returns the pod with an id, or all whose id begins so.
func (v *inventory) podsWithID(prefix string) []*runtimeapi.PodSandbox {
	var out []*runtimeapi.PodSandbox
	for _, p := range v.pods {
		if p.Id == prefix {
			return []*runtimeapi.PodSandbox{p}
		}
		if prefix != "" && strings.HasPrefix(p.Id, prefix) {
			out = append(out, p)
		}
	}
	return out
}

// containersNamed returns the containers of a name, which may have the name or the id's beginning of a pod before it.
func (v *inventory) containersNamed(name string, among []*runtimeapi.Container) []*runtimeapi.Container {
	podName, own := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		podName, own = name[:i], name[i+1:]
	}
	var pods []*runtimeapi.PodSandbox
	if podName != "" {
		if pods = v.podsNamed(podName); len(pods) == 0 {
			pods = v.podsWithID(podName)
		}
	}
	var out []*runtimeapi.Container
	for _, c := range latest(among) {
		if c.GetMetadata().GetName() != own {
			continue
		}
		if podName == "" || slices.ContainsFunc(pods, func(p *runtimeapi.PodSandbox) bool { return p.Id == c.PodSandboxId }) {
			out = append(out, c)
		}
	}
	return out
}

// withID returns the container with an id, or all whose id begins so.
func withID(prefix string, among []*runtimeapi.Container) []*runtimeapi.Container {
	var out []*runtimeapi.Container
	for _, c := range among {
		if c.Id == prefix {
			return []*runtimeapi.Container{c}
		}
		if prefix != "" && strings.HasPrefix(c.Id, prefix) {
			out = append(out, c)
		}
	}
	return out
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
