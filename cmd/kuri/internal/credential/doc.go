// Package credential keeps and finds what registries are logged in to with, where docker and its relatives do: in a
// configuration file (config.json, or podman's auth.json) with its auths, and in the credential helpers that the file names,
// programs docker-credential-NAME that are asked over standard input.
//
// A [File] is read when it is opened and replaced as a whole when it is changed, with mode 0600; what it has that this
// package knows nothing of stays as it is. Two programs that change it at once may lose one of the changes, as with docker.
// Secrets are in the file as docker writes them, in base64, unless the file names a helper.
//
// Whether a registry takes a credential is asked of the registry ([Verify]), which is reached as containerd's certs.d says
// ([Reach]).
package credential
