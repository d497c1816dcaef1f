// Package registry talks to image registries: it parses references, finds the hosts that serve a repository, proves
// who asks, and reads manifests and blobs.
//
// The rules, before the types:
//
//   - A [Reference] is canonical: "busybox" is docker.io/library/busybox:latest. A digest decides; a tag beside it is
//     dropped.
//   - A [Repository] is one conversation about one repository, made for one pull and closed after it. It reads
//     certs.d/<host>/hosts.toml (containerd's format) when it is opened, so a changed file counts from the next pull
//     on. Its hosts are the mirrors in the file's order, then the registry itself; each request goes down that list.
//   - Loopback registries may speak plain HTTP without configuration, as containerd has it; all others only when
//     hosts.toml says "http://".
//   - A blob stream that breaks goes on where it stopped, with a Range request, at the same host or the next. It does
//     not check the digest: who reads it must.
//   - A host that does not answer, stalls, is slower than [Options] allow or has sent a wrong blob is asked last for the
//     rest of the conversation. Where one connection is what a large blob waits for, the rest is fetched by three
//     ranged requests at once, each into a window of 4 MiB.
//   - Whatever a host sends that is not what was asked for is left for the next host: a web page, an error document,
//     another digest, a document that the caller's [Check] refuses, a HEAD that is not answered.
//   - Secrets belong to an origin: scheme, host and port. The credentials of a pull go to the registry that the reference
//     names; where Auth.ServerAddress names a host, to that one alone. A mirror gets what hosts.toml has for it. A redirect
//     to another origin carries neither credentials nor headers of hosts.toml, and where it leads may have a token for
//     anybody. No error has a password, a token or the query of a URL in it.
//   - Errors name the host, the repository and what to do. Their kinds are NotFound (no such manifest or repository),
//     Unauthenticated, PermissionDenied, Unavailable (no answer, a server error, too many requests), Corrupt (content
//     does not match), Exhausted (larger than our bounds) and Invalid (the reference or hosts.toml).
//
// The package owns nothing on disk and keeps no state between pulls. Its caller is package image. A Repository is safe
// for concurrent use.
package registry
