package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/kuri-cri/kuri/internal/fault"
)

// plugins runs CNI plugins for libcni. libcni's own runner waits forever if a child of the plugin keeps its output
// open, and buffers any amount of output; this one does neither.
type plugins struct {
	version.PluginDecoder
	timeout time.Duration
}

const (
	maxOutput   = 4 << 20                // bytes of each of a plugin's streams
	outputDelay = 500 * time.Millisecond // for output that is still in the pipe when the plugin has ended
)

// ExecPlugin implements invoke.Exec.
func (p *plugins) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout,
		fault.New(fault.Unavailable, "it did not end within %s and was killed", p.timeout))
	defer cancel()
	for retries := 0; ; retries++ {
		out, err := run(ctx, path, stdin, environ)
		if !errors.Is(err, syscall.ETXTBSY) || retries == 5 { // it is being installed
			return out, err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func run(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout, stderr limitedBuffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // with all that it started
	cmd.WaitDelay = outputDelay
	err := cmd.Run()
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, fmt.Errorf("plugin %s: %w", path, context.Cause(ctx))
	case stdout.over || stderr.over:
		return nil, fmt.Errorf("plugin %s printed more than %d bytes", path, maxOutput)
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // it ended well; a child of it keeps the pipe, which is not its answer
		return stdout.kept.Bytes(), nil
	}
	var reported types.Error // plugins report errors on stdout
	if json.Unmarshal(stdout.kept.Bytes(), &reported) == nil && reported.Msg != "" {
		return nil, &reported
	}
	return nil, fmt.Errorf("plugin %s: %w: %q", path, err, excerpt(append(stderr.kept.Bytes(), stdout.kept.Bytes()...)))
}

// FindInPath implements invoke.Exec.
func (p *plugins) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// limitedBuffer keeps the first maxOutput bytes and refuses more. The buffer is not embedded: its
// ReadFrom would know no bound.
type limitedBuffer struct {
	kept bytes.Buffer
	over bool
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.kept.Len()+len(p) > maxOutput {
		b.over = true
		return 0, errors.New("too much output")
	}
	return b.kept.Write(p)
}

// excerpt shortens a plugin's output for an error message.
func excerpt(out []byte) []byte {
	out = bytes.TrimSpace(out)
	const most = 500
	if len(out) > most {
		out = append(out[:most:most], "…"...)
	}
	return out
}
