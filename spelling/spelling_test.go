package spelling

import "testing"

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"same", "same", 0},
		{"Deploymnt", "Deployment", 1}, {"capabilites", "capabilities", 1},
		{"tial", "tail", 2}, {"kitten", "sitting", 3}, {"ab", "ba", 2},
	} {
		for _, words := range [][2]string{{tt.a, tt.b}, {tt.b, tt.a}} {
			if got := Distance(words[0], words[1]); got != tt.want {
				t.Errorf("%q and %q: %d, want %d", words[0], words[1], got, tt.want)
			}
		}
	}
}
