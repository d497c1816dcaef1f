package threads

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestTimerSlackOfAllThreads(t *testing.T) {
	const slack = 60 * time.Microsecond
	if err := SetTimerSlack(slack); err != nil {
		t.Fatal(err)
	}
	busy(t, 20, func() { // threads that are started later inherit it
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		if len(tasks) < 20 {
			t.Errorf("only %d threads", len(tasks))
		}
		for _, task := range tasks {
			if got, err := os.ReadFile("/proc/" + task.Name() + "/timerslack_ns"); string(got) != "60000\n" {
				t.Errorf("thread %s: %q, %v", task.Name(), got, err)
			}
		}
	})
	out, err := exec.Command("cat", "/proc/self/timerslack_ns").Output()
	if err != nil || strings.TrimSpace(string(out)) != "60000" {
		t.Errorf("a child's: %q, %v", out, err)
	}
}
