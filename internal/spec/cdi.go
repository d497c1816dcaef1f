package spec

import (
	"slices"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// cdiAnnotation is the key prefix of annotations that request CDI devices. Device plugins used them
// before the CRI had a field. The value is a comma-separated list of names.
const cdiAnnotation = "cdi.k8s.io/"

// CDIDevices returns the qualified names (vendor/class=name) of the CDI devices that a container
// requests, by field or annotation. Duplicates are removed: kubelets send some devices both ways.
func CDIDevices(c *runtime.ContainerConfig) ([]string, error) {
	var names []string
	add := func(field, name string) error {
		if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
			return invalid(field, "%q is not the name of a CDI device: %v", name, err)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		return nil
	}
	for _, d := range c.GetCDIDevices() {
		if err := add("CDI_devices", d.GetName()); err != nil {
			return nil, err
		}
	}
	var keys []string
	for key := range c.GetAnnotations() {
		if strings.HasPrefix(key, cdiAnnotation) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		for name := range strings.SplitSeq(c.GetAnnotations()[key], ",") {
			if err := add("annotations["+key+"]", name); err != nil {
				return nil, err
			}
		}
	}
	return names, nil
}
