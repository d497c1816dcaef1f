package cni

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
)

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 1 << 20

// Configured reports whether there is a CNI configuration, valid or not: a broken one is no reason to attach pods
// to another network.
func (c *Network) Configured() (bool, error) {
	file, err := configFile(c.config.ConfDir)
	return file != "", err
}

// ConfDir returns the node's configuration directory.
func (c *Network) ConfDir() string { return c.config.ConfDir }

// configFile returns the first configuration file of a directory by name, "" for none.
func configFile(dir string) (string, error) {
	files, err := libcni.ConfFiles(dir, []string{".conflist", ".conf", ".json"})
	if err != nil {
		return "", fmt.Errorf("read the CNI configuration directory %s: %w", dir, err)
	}
	if len(files) == 0 {
		return "", nil
	}
	return slices.Min(files), nil
}

// dirOf returns the directory of configurations for the pod.
func (c *Network) dirOf(pod network.Pod) string {
	if pod.CNIConfDir != "" {
		return pod.CNIConfDir
	}
	return c.config.ConfDir
}

// load reads the current configuration of a directory. Its errors name the file.
func load(dir string) (*libcni.NetworkConfigList, error) {
	file, err := configFile(dir)
	if err != nil {
		return nil, err
	}
	if file == "" {
		return nil, fault.New(fault.Precondition,
			"no CNI configuration (*.conflist, *.conf, *.json) in %s; install a network add-on", dir)
	}
	list, err := loadFile(file)
	if err != nil {
		return nil, fault.New(fault.Precondition, "CNI configuration %s: %w", file, err)
	}
	return list, nil
}

func loadFile(file string) (*libcni.NetworkConfigList, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxConfig {
		return nil, fmt.Errorf("it is not a regular file of at most %d bytes", maxConfig)
	}
	if filepath.Ext(file) == ".conflist" {
		list, err := libcni.NetworkConfFromFile(file)
		if err != nil {
			return nil, err
		}
		return flatten(list)
	}
	body, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	one, err := libcni.NetworkPluginConfFromBytes(body)
	if err != nil {
		return nil, err
	}
	if one.Network.Name == "" {
		return nil, fmt.Errorf("it has no name")
	}
	return parseList(listJSON{Name: one.Network.Name, CNIVersion: one.Network.CNIVersion,
		Plugins: []json.RawMessage{body}})
}

// listJSON is a configuration with everything in it, so that it can be kept for DEL.
type listJSON struct {
	CNIVersion   string            `json:"cniVersion"`
	Name         string            `json:"name"`
	DisableCheck bool              `json:"disableCheck,omitempty"`
	DisableGC    bool              `json:"disableGC,omitempty"`
	Plugins      []json.RawMessage `json:"plugins"`
	InlinedOnly  bool              `json:"loadOnlyInlinedPlugins"`
}

// flatten puts the plugins that a configuration takes from a directory beside it into the configuration itself.
func flatten(l *libcni.NetworkConfigList) (*libcni.NetworkConfigList, error) {
	flat := listJSON{Name: l.Name, CNIVersion: l.CNIVersion, DisableCheck: l.DisableCheck, DisableGC: l.DisableGC}
	for _, p := range l.Plugins {
		flat.Plugins = append(flat.Plugins, p.Bytes)
	}
	return parseList(flat)
}

func parseList(l listJSON) (*libcni.NetworkConfigList, error) {
	l.InlinedOnly = true
	body, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(body)
}

// takes reports whether a plugin of the list declares the capability.
func takes(l *libcni.NetworkConfigList, capability string) bool {
	return slices.ContainsFunc(l.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Capabilities[capability] })
}
