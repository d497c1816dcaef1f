// Package run has the verbs that create pods and containers: kuri run and down for manifests and images,
// debug for a container beside those of a pod, and runp, create and start for the files of crictl.
//
// startPod has the steps that create a pod. If one fails, the pods of that invocation are removed again with
// their files (package poddir). Package manifest translates manifests into the CRI's configurations.
package run
