package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// prometheusDir has the dashboard and the alert rules.
const prometheusDir = "../../docs/prometheus"

// prometheusProgram returns the path of a program of Debian's package prometheus.
func prometheusProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	cache := os.Getenv("KURI_CACHE")
	if cache == "" {
		cache = filepath.Join(harness.Repository(), ".cache")
	}
	path = filepath.Join(cache, "prometheus", "usr", "bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("SKIP: %v; it is in Debian's package prometheus, which scripts/deps test fetches", err)
	}
	return path
}

// freeAddress returns an unused TCP address of this node.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Each query of the dashboard has a result in a Prometheus that scrapes a kurid after operations of
// every kind.
func TestTheDashboardHasData(t *testing.T) {
	program := prometheusProgram(t, "prometheus")
	metrics := freeAddress(t)
	s := newShell(t, harness.Options{Config: fmt.Sprintf("metrics_listen = %q\n", metrics)})
	at := startPrometheus(t, program, metrics)
	work := func() {
		s.WaitExit(t, s.run(t, nil, "true"))
		s.Images.PullImage(t.Context(),
			&runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: s.Registry.Host + "/there-is-none:1"}})
		s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{})
	}
	work()
	queries := dashboardQueries(t)
	if len(queries) < 30 {
		t.Errorf("%d queries", len(queries))
	}
	harness.Eventually(t, 2*time.Minute, "all queries have data", func() error {
		var empty []string
		for _, q := range queries {
			if n, err := results(at, q); err != nil {
				return err
			} else if n == 0 {
				empty = append(empty, q)
			}
		}
		if empty == nil {
			return nil
		}
		work() // a rate needs two samples
		return fmt.Errorf("without data:\n%s", strings.Join(empty, "\n"))
	})
}

// dashboardQueries returns the queries of all panels with the variables substituted.
func dashboardQueries(t *testing.T) (queries []string) {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(prometheusDir, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(body, &board); err != nil {
		t.Fatal(err)
	}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			queries = append(queries, strings.NewReplacer("$instance", ".*", "$__rate_interval", "1m").Replace(target.Expr))
		}
	}
	return queries
}

// startPrometheus runs a Prometheus that scrapes kurid, and returns its URL.
func startPrometheus(t *testing.T, program, target string) string {
	t.Helper()
	dir, address := t.TempDir(), freeAddress(t)
	rules, err := filepath.Abs(filepath.Join(prometheusDir, "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("global: {scrape_interval: 1s}\nrule_files: [%s]\nscrape_configs: [{job_name: kurid, static_configs: [{targets: [%q]}]}]\n", rules, target)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--config.file", filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path",
		filepath.Join(dir, "data"), "--web.listen-address", address)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			body, _ := os.ReadFile(log.Name())
			t.Logf("Prometheus: %.4000s", body)
		}
	})
	at := "http://" + address
	harness.Eventually(t, time.Minute, "Prometheus is ready", func() error {
		resp, err := http.Get(at + "/-/ready")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	})
	return at
}

// results returns the number of results of a query.
func results(at, query string) (int, error) {
	resp, err := http.Get(at + "/api/v1/query?" + url.Values{"query": {query}}.Encode())
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: %s: %s: %w", query, resp.Status, body, err)
	}
	var answer struct {
		Data struct{ Result []json.RawMessage }
	}
	err = json.Unmarshal(body, &answer)
	return len(answer.Data.Result), err
}

// The alert rules are well-formed and fire exactly when they should.
func TestAlertRules(t *testing.T) {
	promtool := prometheusProgram(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = prometheusDir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
