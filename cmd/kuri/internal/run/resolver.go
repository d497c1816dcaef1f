package run

import (
	"fmt"
	"os"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// nodeResolver returns the node's resolver, which a pod's dnsConfig extends.
func nodeResolver() (*runtimeapi.DNSConfig, error) {
	data, err := os.ReadFile("/etc/resolv.conf")
	if os.IsNotExist(err) {
		return &runtimeapi.DNSConfig{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the node's resolver: %w", err)
	}
	return parseResolver(data), nil
}

// parseResolver parses a resolv.conf(5). Of several search lines the last one counts.
func parseResolver(data []byte) *runtimeapi.DNSConfig {
	d := &runtimeapi.DNSConfig{}
	for text := range strings.Lines(string(data)) {
		if i := strings.IndexAny(text, "#;"); i >= 0 {
			text = text[:i]
		}
		fields := strings.Fields(text)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			d.Servers = append(d.Servers, fields[1])
		case "search":
			d.Searches = slices.Clone(fields[1:])
		case "options":
			d.Options = append(d.Options, fields[1:]...)
		}
	}
	return d
}
