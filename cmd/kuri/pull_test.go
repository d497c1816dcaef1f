package main

import (
	"strings"
	"testing"
)

func TestCredentials(t *testing.T) {
	c, _, _ := newCLI(nil)
	c.in = strings.NewReader("me:a:b\n")
	if a, err := c.credentials(t.Context(), "-"); err != nil || a.Username != "me" || a.Password != "a:b" {
		t.Errorf("%v %v", a, err)
	}
	if a, err := c.credentials(t.Context(), ""); a != nil || err != nil {
		t.Errorf("%v %v", a, err)
	}
}
