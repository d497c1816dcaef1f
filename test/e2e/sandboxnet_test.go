package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// The example's page is served at the pod's address, over IPv4 and IPv6, to the node and to another
// pod. Requests of a pod to the outside come from the node's address.
func TestBuiltInNetwork(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	d.Pull(t, d.Registry.Push(t, "web:1", harness.Web(t)))
	image := d.PullBusybox(t)
	p := harness.Pod("web")
	pod := d.RunPod(t, p)
	d.Run(t, pod, harness.Container("web", d.Registry.Host+"/web:1"), p)
	network := d.PodStatus(t, pod).Network
	ips := []string{network.Ip}
	for _, ip := range network.AdditionalIps {
		ips = append(ips, ip.Ip)
	}
	if len(ips) != 2 || net.ParseIP(ips[0]).To4() == nil || net.ParseIP(ips[1]).To4() != nil {
		t.Fatalf("the pod has the addresses %v, want one of IPv4, then one of IPv6", ips)
	}
	q := harness.Pod("asks")
	asks := d.Run(t, d.RunPod(t, q), harness.Container("asks", image, "sleep", "1000"), q)
	for _, ip := range ips {
		url := "http://" + net.JoinHostPort(ip, "8080") + "/"
		if page := get(t, url); !strings.Contains(page, "A pod runs.") || !strings.Contains(page, "<code>web</code>") {
			t.Errorf("the page of %s is:\n%s", url, page)
		}
		if page := d.Output(t, asks, "wget", "-q", "-O-", url); !strings.Contains(page, "A pod runs.") {
			t.Errorf("another pod gets from %s:\n%s", url, page)
		}
	}

	// The outside: a network namespace behind a veth pair, with a route to the node's address but
	// to no pod's.
	outside := harness.Outside(t, "192.0.2.1/24", "192.0.2.2/24")
	seen := outside.Serve(t, "192.0.2.2:80")
	d.Output(t, asks, "wget", "-q", "-O-", "http://192.0.2.2/")
	if from := <-seen; !strings.HasPrefix(from, "192.0.2.1:") {
		t.Errorf("the world outside sees %s, want the node's address", from)
	}
}

// A configured range is used and its addresses are released: a range of three serves any number of
// pods one after another, and the error for a fourth concurrent pod says that the range is full.
func TestConfiguredSubnet(t *testing.T) {
	d := harness.Start(t, harness.Options{Config: "[network]\nbridge = \"test0\"\nsubnets = [\"10.77.7.0/29\"]\n"})
	var pods []string
	for range 3 {
		for i := range 5 {
			pod := d.RunPod(t, harness.Pod(fmt.Sprint("turn-", i)))
			if ip := d.PodStatus(t, pod).Network.Ip; !strings.HasPrefix(ip, "10.77.7.") {
				t.Errorf("address %s is not of the range", ip)
			}
			pods = append(pods, pod)
		}
		_, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: harness.Pod("one-too-many")})
		harness.WantError(t, err, codes.ResourceExhausted, "address", "10.77.7.0/29")
		for _, pod := range pods {
			d.RemovePod(t, pod)
		}
		pods = nil
	}
}

// A plugin that takes longer than its caller's timeout runs once: the retry joins and returns the pod.
func TestSlowCNIPlugin(t *testing.T) {
	conf, bin := t.TempDir(), t.TempDir()
	d := harness.Start(t, harness.Options{Config: fmt.Sprintf("[network]\ncni_conf_dir = %q\ncni_bin_dirs = [%q]\n",
		conf, bin)})
	plugin := harness.Write(t, bin, "slow", `#!/bin/sh
echo "$CNI_COMMAND" >>`+filepath.Join(bin, "asked")+`
[ $CNI_COMMAND = VERSION ] || sleep 2
echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"], "interfaces": [{"name": "eth0", "sandbox": "'$CNI_NETNS'"}], "ips": [{"address": "10.99.0.5/24", "interface": 0}]}'
`)
	if err := os.Chmod(plugin, 0o755); err != nil {
		t.Fatal(err)
	}
	harness.Write(t, conf, "10-slow.conflist", `{"cniVersion": "1.0.0", "name": "slow", "plugins": [{"type": "slow"}]}`)
	config := harness.Pod("slow")
	var pod string
	tries := 0
	for pod == "" && tries < 20 {
		tries++
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		resp, err := d.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		cancel()
		if err == nil {
			pod = resp.PodSandboxId
		} else if status.Code(err) != codes.DeadlineExceeded {
			t.Fatal(err)
		}
	}
	if tries < 3 || pod == "" {
		t.Errorf("pod %q after %d tries", pod, tries)
	}
	d.RemovePod(t, pod)
	if asked, err := os.ReadFile(filepath.Join(bin, "asked")); err != nil || string(asked) != "ADD\nDEL\n" {
		t.Errorf("the plugin was asked %q, %v", asked, err)
	}
}

// A CNI configuration is used as soon as it appears. A pod keeps the network that it was attached to.
func TestCNIConfigurationIsUsed(t *testing.T) {
	conf, bin := t.TempDir(), t.TempDir()
	d := harness.Start(t, harness.Options{Config: fmt.Sprintf("[network]\ncni_conf_dir = %q\ncni_bin_dirs = [%q]\n",
		conf, bin)})
	builtIn := d.RunPod(t, harness.Pod("built-in"))

	// A plugin that gives every pod the same address and records its input.
	plugin := harness.Write(t, bin, "note", `#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_ARGS" >>`+filepath.Join(bin, "asked")+`
case $CNI_COMMAND in
ADD) echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "'$CNI_NETNS'"}], "ips": [{"address": "10.99.0.5/24", "interface": 0}]}' ;;
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}' ;;
esac
`)
	if err := os.Chmod(plugin, 0o755); err != nil {
		t.Fatal(err)
	}
	harness.Write(t, conf, "10-note.conflist", `{"cniVersion": "1.0.0", "name": "note", "plugins": [{"type": "note"}]}`)

	pod := d.RunPod(t, harness.Pod("cni"))
	if ip := d.PodStatus(t, pod).Network.GetIp(); ip != "10.99.0.5" {
		t.Errorf("the pod has the address %q, want the plugin's", ip)
	}
	d.RemovePod(t, pod)
	d.RemovePod(t, builtIn)
	asked, err := os.ReadFile(filepath.Join(bin, "asked"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ADD " + pod, "DEL " + pod, "K8S_POD_NAME=cni", "K8S_POD_NAMESPACE=default",
		"K8S_POD_INFRA_CONTAINER_ID=" + pod} {
		if !strings.Contains(string(asked), want) {
			t.Errorf("the plugin was not asked %q but:\n%s", want, asked)
		}
	}
	if strings.Contains(string(asked), builtIn) {
		t.Error("the plugin was asked about the pod of the built-in network")
	}

	// The error for a failing plugin and for a missing one names it, and nothing is left behind.
	harness.Write(t, bin, "note",
		"#!/bin/sh\necho '{\"cniVersion\": \"1.0.0\", \"code\": 100, \"msg\": \"no luck today\"}'\n[ $CNI_COMMAND = ADD ] && exit 1\nexit 0\n")
	_, err = d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: harness.Pod("fails")})
	if err == nil || !strings.Contains(err.Error(), "no luck today") {
		t.Errorf("with a plugin that fails: %v", err)
	}
	harness.Write(t, conf, "10-note.conflist", `{"cniVersion": "1.0.0", "name": "note", "plugins": [{"type": "absent"}]}`)
	_, err = d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: harness.Pod("absent")})
	if err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("without the plugin: %v", err)
	}
	// An attachment that cannot be released because the plugin is missing is remembered. The next
	// kurid that finds the plugin releases it.
	if err := os.Symlink(plugin, filepath.Join(bin, "absent")); err != nil {
		t.Fatal(err)
	}
	d.Restart(t)
}
