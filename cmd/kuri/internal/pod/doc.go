// Package pod has the verbs for existing pods and containers: kuri pods, ps, logs, stats, events,
// update, stop and rm. It implements the grace periods and preStop hooks of kuri run's pods,
// because a runtime does not know them.
package pod
