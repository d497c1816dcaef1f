// Package poddir makes and removes the directories that a pod of kuri run has on the node: its volumes, its hosts file and
// its logs. It is the only part of kuri that keeps files there. They have no record: their paths follow from the pod's
// namespace, name and UID, so that any later kuri finds them. See Files for the layout. Its functions take no lock: two
// programs work on one pod only if both remove it, and removing is idempotent.
package poddir
