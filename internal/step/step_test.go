package step

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func names(steps []Step) string {
	text := ""
	for _, s := range steps {
		text += fmt.Sprintf("%s=%s ", s.Name, s.Took)
	}
	return text
}

func TestStepsFollowOneAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last Report
		ops := New(func(_ context.Context, r Report) { last = r })
		ctx, op := ops.Begin(t.Context(), "RemovePodSandbox", Subject{PodID: "p"}, Caller{Pid: 1})
		time.Sleep(time.Second)
		Enter(ctx, "kill")
		time.Sleep(2 * time.Second)
		Enter(ctx, "network")
		time.Sleep(3 * time.Second)
		if all := ops.List(); len(all) != 1 || names(all[0].Steps) != "kill=2s network=3s " ||
			all[0].Took != 6*time.Second || all[0].Answered {
			t.Errorf("%+v", all)
		}
		Enter(ctx, "kill")
		time.Sleep(4 * time.Second)
		op.Know(Subject{Pod: "web"})
		r := op.Answer(errors.New("no"))
		if names(r.Totals()) != "kill=6s network=3s " || r.Slowest().Name != "kill" || r.Took != 10*time.Second ||
			r.Err == nil || r.Subject != (Subject{PodID: "p", Pod: "web"}) {
			t.Errorf("%+v", r)
		}
		if last.Took != r.Took || len(ops.List()) != 0 {
			t.Errorf("%+v, %+v", last, ops.List())
		}
		Enter(ctx, "late")
		if len(op.Report().Steps) != 3 {
			t.Error("a step after the end")
		}
	})
}

// An operation stays in flight until its work is done, even when its caller has given up.
func TestAHeldOperationOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := 0
		ops := New(func(_ context.Context, r Report) {
			if ended++; names(r.Steps) != "network=5s " || r.Took != time.Second {
				t.Errorf("%+v", r)
			}
		})
		ctx, op := ops.Begin(t.Context(), "RunPodSandbox", Subject{}, Caller{})
		release := Hold(context.WithoutCancel(ctx))
		Enter(ctx, "network")
		time.Sleep(time.Second)
		op.Answer(context.DeadlineExceeded)
		time.Sleep(4 * time.Second)
		if all := ops.List(); len(all) != 1 || !all[0].Answered || names(all[0].Steps) != "network=5s " {
			t.Errorf("%+v", all)
		}
		release()
		release()
		if ended != 1 || len(ops.List()) != 0 {
			t.Errorf("ended %d times, %+v", ended, ops.List())
		}
	})
}

// Parts are clipped to their step and added up like steps.
func TestPartsOfAStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, op := New(nil).Begin(t.Context(), "CreateContainer", Subject{}, Caller{})
		Split(ctx, []Step{{Name: "early", Began: time.Now()}})
		began := time.Now()
		time.Sleep(time.Second)
		Enter(ctx, "process")
		time.Sleep(10 * time.Second)
		Split(ctx, []Step{
			{Name: "before", Began: began, Took: time.Millisecond},
			{Name: "mounts", Began: began, Took: 3 * time.Second},
			{Name: "init", Began: began.Add(3 * time.Second), Took: 4 * time.Second},
			{Name: "mounts", Began: began.Add(8 * time.Second), Took: time.Hour},
		})
		Leave(ctx)
		Split(ctx, []Step{{Name: "late", Began: time.Now()}})
		r := op.Answer(nil)
		totals := r.Totals()
		if len(totals) != 1 || names(totals[0].Parts) != "mounts=5s init=4s " ||
			Longest(totals[0].Parts).Name != "mounts" {
			t.Errorf("%+v", totals)
		}
		if names(r.Steps[0].Parts) != "mounts=2s init=4s mounts=3s " || r.Steps[0].Took != 10*time.Second {
			t.Errorf("%+v", r.Steps)
		}
	})
}

func TestWithoutAnOperationNothingIsRecorded(t *testing.T) {
	Enter(t.Context(), "x")
	Split(t.Context(), []Step{{Name: "x"}})
	Leave(t.Context())
	Hold(t.Context())()
}

func BenchmarkOperation(b *testing.B) {
	ops := New(nil)
	b.ReportAllocs()
	for b.Loop() {
		ctx, op := ops.Begin(b.Context(), "StartContainer", Subject{}, Caller{})
		Enter(ctx, "a")
		Enter(ctx, "b")
		op.Answer(nil)
	}
}
