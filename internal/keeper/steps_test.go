package keeper

import (
	"fmt"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// The keeper's steps stand between the request and the answer, and a joined work's at its end.
func TestPlaceOfTheKeepersSteps(t *testing.T) {
	asked := time.Unix(1000, 0)
	ms := func(n int64) int64 { return n * int64(time.Millisecond) }
	told := []*api.Step{{Name: "a", TookNs: ms(10)}, {Name: "b", AfterNs: ms(10), TookNs: ms(20)}}
	for _, row := range []struct {
		took time.Duration
		want string
	}{
		{34 * time.Millisecond, "a 2ms 10ms b 12ms 20ms "},
		{30 * time.Millisecond, "a 0s 10ms b 10ms 20ms "},
		{20 * time.Millisecond, "a -10ms 10ms b 0s 20ms "},
	} {
		got := ""
		for _, p := range place(told, asked, asked.Add(row.took)) {
			got += fmt.Sprintf("%s %s %s ", p.Name, p.Began.Sub(asked), p.Took)
		}
		if got != row.want {
			t.Errorf("an answer after %s: %q, want %q", row.took, got, row.want)
		}
	}
	if got := place(nil, asked, asked); got != nil {
		t.Errorf("%v", got)
	}
}
