package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
)

// check rejects combinations that the CRI excludes.
func (w StreamSet) check() error {
	if w.TTY && w.Stderr {
		return fault.New(fault.Invalid, "tty and stderr cannot both be true: a terminal has one output")
	}
	if !w.Stdin && !w.Stdout && !w.Stderr {
		return fault.New(fault.Invalid, "one of stdin, stdout and stderr must be true")
	}
	return nil
}

// Exec returns a URL at which a client can run cmd in a container.
func (s *Server) Exec(c Container, cmd []string, want StreamSet) (string, error) {
	return s.remoteCommand("exec", want, func(ctx context.Context, with keeper.Streams) error {
		code, err := s.runtime.Exec(ctx, c, cmd, want.TTY, with)
		if err == nil && code != 0 {
			err = utilexec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: int(code)}
		}
		return err
	})
}

// Attach returns a URL at which a client can attach to a container.
func (s *Server) Attach(c Container, want StreamSet) (string, error) {
	return s.remoteCommand("attach", want, func(ctx context.Context, with keeper.Streams) error {
		return s.runtime.Attach(ctx, c, with)
	})
}

// remoteCommand returns a URL at which run is called with a client's streams.
func (s *Server) remoteCommand(kind string, want StreamSet, run command) (string, error) {
	if err := want.check(); err != nil {
		return "", err
	}
	return s.ticket(kind, func(w http.ResponseWriter, r *http.Request) {
		if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
			serveV5(w, r, want, run)
			return
		}
		if !wsstream.IsWebSocketRequest(r) {
			w = framedResponse{w}
		}
		opts := &remotecommand.Options{Stdin: want.Stdin, Stdout: want.Stdout, Stderr: want.Stderr, TTY: want.TTY}
		remotecommand.ServeExec(w, r, run, "", "", "", nil, opts, idleLimit, creationLimit,
			remotecommand.SupportedStreamingProtocols)
	})
}

// command runs an exec or an attachment with a client's streams. Its error may hold an exit code.
type command func(context.Context, keeper.Streams) error

// ExecInContainer runs it with the streams of the library. The names and the timeout are the
// kubelet's, and empty here.
func (run command) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out,
	errOut io.WriteCloser, _ bool,
	resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	client := ctx // ends when the client disconnects
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	with := keeper.Streams{Resize: sizes(ctx, resize)}
	// A nil stream of the library must not become a non-nil interface.
	if in != nil {
		with.Stdin = in
	}
	if out != nil {
		with.Stdout = out
	}
	if errOut != nil {
		with.Stderr = errOut
	}
	err := run(ctx, with)
	if err != nil && client.Err() != nil { // nobody is left to read it, and the library would log an error
		slog.Debug("the client of a stream has disconnected", "err", err)
		return nil
	}
	return err
}

// sizes passes sizes on until ctx ends or in is closed.
func sizes(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan keeper.Size {
	out := make(chan keeper.Size)
	go func() {
		defer close(out)
		for {
			select {
			case size, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- keeper.Size{Width: size.Width, Height: size.Height}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// Channels of remote commands over WebSocket.
const (
	stdinChannel = iota
	stdoutChannel
	stderrChannel
	errorChannel
	resizeChannel
)

// serveV5 serves the protocol of client-go over WebSocket. k8s.io/cri-streaming has only the older
// ones.
func serveV5(w http.ResponseWriter, r *http.Request, want StreamSet, run command) {
	kinds := []wsstream.ChannelType{wsstream.IgnoreChannel, wsstream.IgnoreChannel, wsstream.IgnoreChannel,
		wsstream.WriteChannel, wsstream.ReadChannel}
	greet := errorChannel
	if want.Stdin {
		kinds[stdinChannel] = wsstream.ReadChannel
	}
	if want.Stderr {
		kinds[stderrChannel], greet = wsstream.WriteChannel, stderrChannel
	}
	if want.Stdout {
		kinds[stdoutChannel], greet = wsstream.WriteChannel, stdoutChannel
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: kinds},
	})
	conn.SetIdleTimeout(idleLimit)
	_, channels, err := conn.Open(w, r)
	if err != nil {
		slog.Debug("open a stream over WebSocket", "err", err)
		return
	}
	defer conn.Close()
	_, _ = channels[greet].Write(nil) // announces the connection, like the older protocols

	resize := make(chan remotecommand.TerminalSize)
	go decodeSizes(r.Context(), channels[resizeChannel], resize)
	streams := [3]io.ReadWriteCloser{}
	for i := range streams {
		if kinds[i] != wsstream.IgnoreChannel {
			streams[i] = channels[i]
		}
	}
	err = run.ExecInContainer(r.Context(), "", "", "", nil, reader(streams[0]), writer(streams[1]), writer(streams[2]),
		want.TTY, resize, 0)
	body, err := json.Marshal(statusOf(err))
	if err == nil {
		_, err = channels[errorChannel].Write(body)
	}
	if err != nil {
		slog.Debug("send the end of a stream", "err", err)
	}
}

// reader and writer return a nil interface for nil.
func reader(rwc io.ReadWriteCloser) io.Reader {
	if rwc == nil {
		return nil
	}
	return rwc
}

func writer(rwc io.ReadWriteCloser) io.WriteCloser {
	if rwc == nil {
		return nil
	}
	return rwc
}

func decodeSizes(ctx context.Context, from io.Reader, to chan<- remotecommand.TerminalSize) {
	defer close(to)
	for decode := json.NewDecoder(from); ; {
		var size remotecommand.TerminalSize
		if decode.Decode(&size) != nil {
			return
		}
		select {
		case to <- size:
		case <-ctx.Done():
			return
		}
	}
}

// exitStatus is the part of the Kubernetes API's meta/v1 Status that reports the end of a command.
type exitStatus struct {
	Status  string       `json:"status"`
	Message string       `json:"message,omitempty"`
	Reason  string       `json:"reason,omitempty"`
	Details *exitDetails `json:"details,omitempty"`
	Code    int          `json:"code,omitempty"`
}

type exitDetails struct {
	Causes []exitCause `json:"causes"`
}

type exitCause struct {
	Type    string `json:"reason"` // so named in the API
	Message string `json:"message"`
}

// statusOf reports the end of a command in the format of remotecommand v4 and v5.
func statusOf(err error) exitStatus {
	var exit utilexec.CodeExitError
	switch {
	case err == nil:
		return exitStatus{Status: "Success"}
	case errors.As(err, &exit):
		return exitStatus{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", err),
			Details: &exitDetails{[]exitCause{{remotecommand.ExitCodeCauseType, strconv.Itoa(exit.Code)}}},
		}
	}
	return exitStatus{Status: "Failure", Reason: "InternalError", Message: "error executing command in container: " +
		err.Error(), Code: http.StatusInternalServerError}
}
