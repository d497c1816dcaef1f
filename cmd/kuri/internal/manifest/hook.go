package manifest

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// PostStart returns the hook to run after the container has started, with ports as numbers; nil for
// none.
func (c Container) PostStart() *corev1.LifecycleHandler {
	if c.api.Lifecycle == nil {
		return nil
	}
	return withNumbers(c.api, c.api.Lifecycle.PostStart)
}

// preStop returns the hook to run before the container is stopped, with ports as numbers; nil for
// none.
func (c Container) preStop() *corev1.LifecycleHandler {
	if c.api.Lifecycle == nil {
		return nil
	}
	return withNumbers(c.api, c.api.Lifecycle.PreStop)
}

// withNumbers replaces a port name with its number.
func withNumbers(c *corev1.Container, hook *corev1.LifecycleHandler) *corev1.LifecycleHandler {
	if hook == nil || hook.HTTPGet == nil {
		return hook
	}
	hook = hook.DeepCopy()
	if n, ok := portNumber(c, hook.HTTPGet.Port); ok {
		hook.HTTPGet.Port = intstr.FromInt32(n)
	}
	return hook
}

// portNumber returns the number of a port, given by number or name.
func portNumber(c *corev1.Container, port intstr.IntOrString) (int32, bool) {
	if port.Type == intstr.Int {
		return port.IntVal, port.IntVal > 0 && port.IntVal < 1<<16
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return p.ContainerPort, true
		}
	}
	return 0, false
}

// hooks validates the hooks of a container.
func (v *validator) hooks(c *corev1.Container, field string) {
	if c.Lifecycle == nil {
		return
	}
	for _, h := range []struct {
		name string
		hook *corev1.LifecycleHandler
	}{{"postStart", c.Lifecycle.PostStart}, {"preStop", c.Lifecycle.PreStop}} {
		if h.hook == nil {
			continue
		}
		at := fmt.Sprintf("%s.lifecycle.%s", field, h.name)
		switch {
		case h.hook.TCPSocket != nil:
			v.wrong(at+".tcpSocket", "Kubernetes too has no such hook: use exec, httpGet or sleep")
		case moreThanOne(h.hook.Exec != nil, h.hook.HTTPGet != nil, h.hook.Sleep != nil):
			v.wrong(at, "a hook is one of exec, httpGet and sleep")
		case h.hook.Exec != nil && len(h.hook.Exec.Command) == 0:
			v.wrong(at+".exec.command", "a command is needed")
		case h.hook.HTTPGet != nil:
			if _, ok := portNumber(c, h.hook.HTTPGet.Port); !ok {
				v.wrong(at+".httpGet.port", "%s is neither a port nor the name of one of the container's",
					h.hook.HTTPGet.Port.String())
			}
			if s := h.hook.HTTPGet.Scheme; s != "" && s != corev1.URISchemeHTTP && s != corev1.URISchemeHTTPS {
				v.wrong(at+".httpGet.scheme", "%q: expected HTTP or HTTPS", s)
			}
		case h.hook.Sleep != nil:
			if h.hook.Sleep.Seconds < 0 {
				v.wrong(at+".sleep.seconds", "%d: it cannot be negative", h.hook.Sleep.Seconds)
			}
		case h.hook.Exec == nil:
			v.wrong(at, "a hook is one of exec, httpGet and sleep")
		}
	}
}
