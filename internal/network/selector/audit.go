package selector

import (
	"context"
	"fmt"
	"maps"

	"github.com/kuri-cri/kuri/internal/network"
)

// Audit compares the kernel's links and rules with the leases, and the leases with the pods that
// are known and those that are attached, by id. It changes nothing. Of other networks than these it
// says nothing.
func (s *Selector) Audit(known func(podID string) bool,
	attached map[string]network.Attachment) ([]network.Stray, error) {
	bridged := maps.Clone(attached)
	maps.DeleteFunc(bridged, func(_ string, a network.Attachment) bool { return a.Result.By != network.ByBridge })
	found, err := s.bridge.Audit(known, bridged)
	if err != nil {
		return nil, err
	}
	plugged, err := s.cni.Attached()
	if err != nil {
		return nil, fmt.Errorf("list what CNI plugins have attached: %w", err)
	}
	for _, id := range plugged {
		if known(id) || s.detaching(id) {
			continue
		}
		found = append(found, network.Stray{
			Kind: "CNI attachment", Subject: s.cni.RecordPath(id),
			Problem: "a CNI plugin has attached a pod that is gone, and may keep its addresses",
			Fix: func(ctx context.Context) error {
				return s.Detach(ctx, network.Pod{ID: id}, &network.Result{By: network.ByCNI})
			},
		})
	}
	return found, nil
}

// detaching reports whether a pod is being detached, or is in the retry queue.
func (s *Selector) detaching(podID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.retries[podID] != nil || s.busy[podID] != nil
}
