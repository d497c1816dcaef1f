package network

import "github.com/containernetworking/cni/libcni"

// CNIAbout is the CNI configuration that counts now, in the form that containerd and CRI tools know as "cniconfig".
type CNIAbout struct {
	PluginDirs       []string
	PluginConfDir    string
	PluginMaxConfNum int
	Prefix           string
	Networks         []CNINetwork
}

// CNINetwork is one network of a [CNIAbout].
type CNINetwork struct {
	Config CNINetworkConfig
	IFName string
}

// CNINetworkConfig is a list of plugins, as it was configured.
type CNINetworkConfig struct {
	Name       string
	CNIVersion string
	Plugins    []CNIPlugin
	Source     string // JSON
}

// CNIPlugin is one plugin of a list.
type CNIPlugin struct {
	Network struct {
		Type string `json:"type"`
	}
	Source string // JSON
}

// unconfigured is what there is to tell without a configuration.
func (c *CNI) unconfigured() CNIAbout {
	return CNIAbout{
		PluginDirs: c.config.BinDirs, PluginConfDir: c.config.ConfDir, PluginMaxConfNum: 1, Prefix: "eth", Networks: []CNINetwork{},
	}
}

// about returns the configuration that counts now, and why it cannot be used.
func (c *CNI) about() (CNIAbout, error) {
	about := c.unconfigured()
	list, err := load(c.config.ConfDir)
	if err != nil {
		return about, err
	}
	about.Networks = append(about.Networks, CNINetwork{Config: aboutList(list), IFName: Interface})
	return about, c.installed(list)
}

func aboutList(list *libcni.NetworkConfigList) CNINetworkConfig {
	about := CNINetworkConfig{Name: list.Name, CNIVersion: list.CNIVersion, Source: string(list.Bytes), Plugins: []CNIPlugin{}}
	for _, p := range list.Plugins {
		one := CNIPlugin{Source: string(p.Bytes)}
		one.Network.Type = p.Network.Type
		about.Plugins = append(about.Plugins, one)
	}
	return about
}
