// Package registry is a client of image registries: it parses references, finds the hosts that
// serve a repository, authenticates, and fetches manifests and blobs.
//
// Rules:
//
//   - A [Reference] is canonical: "busybox" is docker.io/library/busybox:latest. A digest takes
//     precedence over a tag, which is dropped.
//   - A [Repository] is a connection to one repository for one pull. It reads
//     certs.d/<host>/hosts.toml (containerd's format) when it is opened, so a change takes effect
//     with the next pull. Its hosts are the mirrors in the order of the file, then the registry
//     itself. Each request tries them in this order.
//   - Loopback registries may use plain HTTP without configuration, as with containerd. Others may
//     only if hosts.toml says "http://".
//   - A broken blob stream resumes with a Range request, at the same host or the next one. It does
//     not verify the digest; its reader must.
//   - A host that does not answer, stalls, is slower than [Options] allow or has sent a corrupt blob
//     is tried last from then on, until the Repository is closed. If a large blob is limited by its
//     connection, the rest is fetched by three parallel range requests of 4 MiB each.
//   - If a host sends anything but what was requested, the next host is tried: a web page, an error
//     document, another digest, a document that the caller's [Check] refuses, an unsupported HEAD.
//   - Secrets belong to an origin: scheme, host and port. The credentials of a pull are sent only to
//     the registry in the reference or, if Auth.ServerAddress is set, only to that host. A mirror
//     gets the credentials configured for it in hosts.toml. A redirect to another origin carries
//     neither credentials nor headers of hosts.toml; its target may require an anonymous token. No
//     error contains a password, a token or the query of a URL.
//   - Errors name the host, the repository and what to do. Their kinds are NotFound (no such manifest
//     or repository), Unauthenticated, PermissionDenied, Unavailable (no answer, a server error, too
//     many requests), Corrupt (content does not match), Exhausted (a limit of this package is
//     exceeded) and Invalid (the reference or hosts.toml).
//
// The package owns nothing on disk and keeps no state between pulls. Its caller is package image. A
// Repository is safe for concurrent use.
package registry
