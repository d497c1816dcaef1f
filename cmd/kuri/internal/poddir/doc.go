// Package poddir creates and removes the directories of a pod of kuri run on the node: its volumes, its hosts
// file and its logs. It is the only part of kuri that keeps files there. They have no record: their paths
// follow from the pod's namespace, name and UID, so that any later kuri finds them. See Files for the layout.
// The functions take no lock: two programs work on one pod only to remove it, and removal is idempotent.
package poddir
