package image

import (
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/clitest"
)

func TestCredentials(t *testing.T) {
	c, _, _ := clitest.New(nil)
	c.In = strings.NewReader("me:a:b\n")
	if a, err := credentials(t.Context(), c, "-"); err != nil || a.Username != "me" || a.Password != "a:b" {
		t.Errorf("%v %v", a, err)
	}
	if a, err := credentials(t.Context(), c, ""); a != nil || err != nil {
		t.Errorf("%v %v", a, err)
	}
}
