package image

import (
	"strings"
	"testing"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
)

func TestHistoryPairsStepsWithLayers(t *testing.T) {
	d := &kuriv1.ImageDescription{
		Config: []byte(`{"history": [
			{"created_by": "ADD rootfs"},
			{"created_by": "ENV A=b", "empty_layer": true},
			{"created_by": "` + strings.Repeat("x", 80) + `"}]}`),
		Layers: []*kuriv1.ImageLayer{{DiffId: "sha256:" + strings.Repeat("a", 64), Bytes: 2048},
			{DiffId: "sha256:" + strings.Repeat("b", 64)}},
	}
	rows, err := historyRows(d, false)
	if err != nil || len(rows) != 4 {
		t.Fatalf("%v, %v", rows, err)
	}
	if got := rows[1]; !strings.HasPrefix(got[0], "bbb") || !strings.HasSuffix(got[3], "…") {
		t.Errorf("the newest step: %v", got)
	}
	if got := rows[2]; got[0] != "" || got[3] != "ENV A=b" {
		t.Errorf("a step without a layer: %v", got)
	}
	if got := rows[3]; !strings.HasPrefix(got[0], "aaa") || got[1] != "2.0 KiB" {
		t.Errorf("the first step: %v", got)
	}
	// No history at all: a row for each layer. A configuration that is not JSON is an error.
	if rows, err := historyRows(&kuriv1.ImageDescription{Config: []byte("{}"), Layers: d.Layers}, true); err != nil ||
		len(rows) != 3 {
		t.Errorf("%v, %v", rows, err)
	}
	if _, err := historyRows(&kuriv1.ImageDescription{Config: []byte("no")}, true); err == nil {
		t.Error("a broken configuration was accepted")
	}
}
