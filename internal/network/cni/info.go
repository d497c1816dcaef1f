package cni

import (
	"github.com/containernetworking/cni/libcni"
	"github.com/kuri-cri/kuri/internal/network"
)

// Info is the CNI current configuration, in the form that containerd and CRI tools know as "cniconfig".
type Info struct {
	PluginDirs       []string
	PluginConfDir    string
	PluginMaxConfNum int
	Prefix           string
	Networks         []InfoNetwork
}

// InfoNetwork is one network of an [Info].
type InfoNetwork struct {
	Config InfoConfig
	IFName string
}

// InfoConfig is a list of plugins, as it was configured.
type InfoConfig struct {
	Name       string
	CNIVersion string
	Plugins    []InfoPlugin
	Source     string // JSON
}

// InfoPlugin is one plugin of a list.
type InfoPlugin struct {
	Network struct {
		Type string `json:"type"`
	}
	Source string // JSON
}

// Unconfigured returns the Info of a node without a configuration.
func (c *Network) Unconfigured() Info {
	return Info{
		PluginDirs: c.config.BinDirs, PluginConfDir: c.config.ConfDir, PluginMaxConfNum: 1, Prefix: "eth",
		Networks: []InfoNetwork{},
	}
}

// Info returns the current configuration, and an error if it cannot be used.
func (c *Network) Info() (Info, error) {
	about := c.Unconfigured()
	list, err := load(c.config.ConfDir)
	if err != nil {
		return about, err
	}
	about.Networks = append(about.Networks, InfoNetwork{Config: aboutList(list), IFName: network.Interface})
	return about, c.installed(list)
}

func aboutList(list *libcni.NetworkConfigList) InfoConfig {
	about := InfoConfig{Name: list.Name, CNIVersion: list.CNIVersion, Source: string(list.Bytes), Plugins: []InfoPlugin{}}
	for _, p := range list.Plugins {
		one := InfoPlugin{Source: string(p.Bytes)}
		one.Network.Type = p.Network.Type
		about.Plugins = append(about.Plugins, one)
	}
	return about
}
