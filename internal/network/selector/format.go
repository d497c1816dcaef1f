package selector

import (
	"errors"

	"github.com/kuri-cri/kuri/internal/network/bridge"
	"github.com/kuri-cri/kuri/internal/network/cni"
)

// CheckFormats returns an error of kind Precondition when a newer version of Kuri wrote a record of
// the built-in network, which are in bridgeDir, or of CNI attachments, which are in cniDir. It
// changes nothing.
func CheckFormats(bridgeDir, cniDir string) error {
	return errors.Join(bridge.CheckFormats(bridgeDir), cni.CheckFormats(cniDir))
}
