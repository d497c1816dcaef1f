package keeper

import (
	"path/filepath"

	"github.com/kuri-cri/kuri/internal/record"
)

// Exit is the record that the keeper leaves in a container's bundle before it tells anyone of the exit.
type Exit struct {
	Code       int32 `json:"code"`        // 0 to 255; 128 + n when signal n ended it
	StartedAt  int64 `json:"started_at"`  // nanoseconds since the epoch; 0 when it never ran its own program
	FinishedAt int64 `json:"finished_at"` // nanoseconds since the epoch
	OOMKilled  bool  `json:"oom_killed"`  // the kernel killed a process of the container for its memory limit
	// Unknown says why nobody knows how it ended, "" when Code does.
	Unknown string `json:"unknown,omitempty"`
}

const exitVersion = 1

// CheckFormats returns an error of kind Precondition when a newer version of Kuri wrote an exit record. (The keeper checks its
// other records itself.) It changes nothing.
func CheckFormats(stateDir string) error {
	return record.Newer(exitVersion, stateDir, "pods/*/containers/*/exit.json")
}

// ReadExit reads the exit record of a bundle. NotFound says that the container has not exited, as far as the keeper
// could tell.
func ReadExit(bundle string) (Exit, error) {
	var e Exit
	err := record.Read(filepath.Join(bundle, "exit.json"), exitVersion, &e)
	return e, err
}

// WriteExit replaces the exit record of a bundle. It is the keeper's to call.
func WriteExit(bundle string, e Exit) error {
	return record.Write(filepath.Join(bundle, "exit.json"), exitVersion, e)
}
