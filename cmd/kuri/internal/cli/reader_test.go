package cli

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/spf13/cobra"
)

// A verb that follows ends when its pipe has no reader. Others, and one with a reader, do not.
func TestEndWithReader(t *testing.T) {
	for _, tt := range []struct {
		name                string
		following, isClosed bool
		want                error
	}{
		{"a reader that leaves", true, true, ExitCode(141)},
		{"a reader that stays", true, false, context.Canceled},
		{"a verb that ends by itself", false, true, context.Canceled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			c, _, _ := newCLI(nil)
			c.Out = w
			cmd := &cobra.Command{RunE: func(cmd *cobra.Command, _ []string) error {
				if tt.isClosed {
					r.Close()
				}
				if !errors.Is(tt.want, ExitCode(141)) {
					cancel()
				}
				<-cmd.Context().Done()
				return cmd.Context().Err()
			}}
			c.EndWithReader(cmd, func() bool { return tt.following })
			cmd.SetContext(ctx)
			if err := cmd.RunE(cmd, nil); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}
