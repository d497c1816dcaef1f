// Package stream has the verbs with streams: kuri exec, attach, cp and port-forward, and the
// terminal for the first two. Streams are SPDY connections to the URLs that the runtime returns. A
// terminal in raw mode is restored before the verb returns.
package stream
