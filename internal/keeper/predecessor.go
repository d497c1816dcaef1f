package keeper

import "github.com/kuri-cri/kuri/internal/keeper/api"

// Predecessor describes a running keeper of a release that had no holder and wrote no records.
// kuri-keeper --take-over reads it as JSON.
type Predecessor struct {
	Pid  int               `json:"pid"`
	Held *api.ListResponse `json:"held"` // its answer to List

	// The requests for its pods and containers, from kurid's records.
	Sandboxes  map[string]*api.CreateSandboxRequest `json:"sandboxes"`
	Containers map[string]*api.CreateRequest        `json:"containers"`
}
