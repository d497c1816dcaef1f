package network

import (
	"errors"
	"path/filepath"

	"github.com/kuri-cri/kuri/internal/record"
)

// CheckFormats returns an error of kind Precondition when a newer version of Kuri wrote a record of the built-in network, which
// are in bridgeDir, or of CNI attachments, which are in cniDir. It changes nothing.
func CheckFormats(bridgeDir, cniDir string) error {
	return errors.Join(
		record.Newer(leaseVersion, bridgeDir, "leases/*.json"),
		record.Newer(podCIDRVersion, bridgeDir, filepath.Base(podCIDRPath(bridgeDir))),
		record.Newer(trustVersion, bridgeDir, trustFile),
		record.Newer(attachmentVersion, cniDir, "attachments/*.json"),
	)
}
