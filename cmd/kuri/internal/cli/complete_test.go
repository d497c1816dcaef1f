package cli

import (
	"slices"
	"testing"
)

// A completion offers names, and ids only where no name begins like the word.
func TestCompletionOfIDs(t *testing.T) {
	for prefix, want := range map[string][]string{
		"":               {"ab1", "web"},
		"w":              {"web"},
		"ab":             {"ab1"},
		"abc":            {"abcdef012345"},
		"abcdef0123456":  {"abcdef0123456789"},
		"abcdef01234567": {"abcdef0123456789"},
		"x":              nil,
	} {
		if got := (objects{[]string{"ab1", "web"}, []string{"abcdef0123456789", "0123456789abcdef"}}).with(prefix); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", prefix, got, want)
		}
	}
}
