// Package pod has the verbs for pods and containers that exist: kuri pods, ps, logs, stats, events, update, stop and rm. The
// grace periods and preStop hooks of pods of kuri run are honoured here, as a runtime has no notion of either.
package pod
