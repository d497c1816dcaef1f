// Package run has the verbs that make pods and containers: kuri run and down for manifests and images, debug for a
// container beside those of a pod, and runp, create and start for the files of crictl.
//
// A pod is made in the steps of startPod. If one fails, the pods of that invocation are removed again, with their files; see
// package poddir for these. Package manifest translates manifests into the CRI's configurations.
package run
