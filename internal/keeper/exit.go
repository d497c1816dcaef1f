package keeper

import (
	"path/filepath"

	"github.com/kuri-cri/kuri/internal/record"
)

// Exit is the record of an exit, which the keeper writes to the container's bundle before it reports the exit.
type Exit struct {
	Code       int32 `json:"code"`        // 0 to 255; 128 + n if signal n ended the process
	StartedAt  int64 `json:"started_at"`  // nanoseconds since the epoch; 0 if the program never started
	FinishedAt int64 `json:"finished_at"` // nanoseconds since the epoch
	OOMKilled  bool  `json:"oom_killed"`  // the kernel killed a process of the container for its memory limit
	// Unknown is the reason why the exit code is unknown, "" if Code is known.
	Unknown string `json:"unknown,omitempty"`
}

const exitVersion = 1

// CheckFormats returns an error of kind Precondition if a newer version of Kuri wrote an exit
// record. It changes nothing. (The keeper checks its other records itself.)
func CheckFormats(stateDir string) error {
	return record.Newer(exitVersion, stateDir, "pods/*/containers/*/exit.json")
}

// ReadExit reads the exit record of a bundle. The error is of kind NotFound if the keeper has recorded no exit.
func ReadExit(bundle string) (Exit, error) {
	var e Exit
	err := record.Read(filepath.Join(bundle, "exit.json"), exitVersion, &e)
	return e, err
}

// WriteExit replaces the exit record of a bundle. Only the keeper calls it.
func WriteExit(bundle string, e Exit) error {
	return record.Write(filepath.Join(bundle, "exit.json"), exitVersion, e)
}
