package keeper

import "github.com/kuri-cri/kuri/internal/keeper/api"

// Predecessor is a keeper that runs, has no holder and wrote no records: that of a release before there were any. It is what
// kuri-keeper --take-over reads, as JSON.
type Predecessor struct {
	Pid  int               `json:"pid"`
	Held *api.ListResponse `json:"held"` // what it answers to List

	// How its pods and containers were asked for, as far as kurid has records of them.
	Sandboxes  map[string]*api.CreateSandboxRequest `json:"sandboxes"`
	Containers map[string]*api.CreateRequest        `json:"containers"`
}
