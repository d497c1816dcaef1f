// Package credential stores and finds the credentials of registries in the same places as docker,
// podman and others: the auths of a configuration file (config.json, or podman's auth.json), and
// the credential helpers named in that file. Those are programs docker-credential-NAME that are
// called with a request on standard input.
//
// A [File] is read when it is opened. A change replaces the whole file, with mode 0600, and keeps
// keys that are unknown to this package. If two programs change the file at the same time, one
// change may be lost, as with docker. The file has secrets in base64, as docker writes them, unless
// it names a helper.
//
// The registry itself decides whether a credential is valid ([Verify]). It is reached as
// containerd's certs.d specifies ([Reach]).
package credential
