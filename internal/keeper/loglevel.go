package keeper

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// The keeper logs at the level of the kurid that uses it. The level is in a file, because the
// holder starts every keeper with the arguments of the first one.

func logLevelPath(stateDir string) string { return filepath.Join(stateDir, "keeper", "log-level") }

// LogLevel returns the level at which the keeper of a state directory is to log, or otherwise where no kurid has said.
func LogLevel(stateDir string, otherwise slog.Level) slog.Level {
	body, err := os.ReadFile(logLevelPath(stateDir))
	level := otherwise
	if err == nil {
		err = level.UnmarshalText(body)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return otherwise
	}
	if err != nil {
		slog.Warn("the level of the keeper's log cannot be read", "err", err)
		return otherwise
	}
	return level
}

// setLogLevel has the keeper of a state directory log at a level, from its next Info on.
func setLogLevel(stateDir, level string) {
	path := logLevelPath(stateDir)
	if level == "" {
		level = "info"
	}
	if body, err := os.ReadFile(path); err == nil && string(body) == level {
		return
	}
	tmp := path + ".new"
	err := os.WriteFile(tmp, []byte(level), 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		slog.Warn("the keeper keeps its log level", "err", err)
	}
}
