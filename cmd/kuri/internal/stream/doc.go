// Package stream has the verbs with streams: kuri exec, attach, cp and port-forward, and the terminal that the first two
// need. Streams are SPDY connections to the URLs that the runtime hands out. A terminal in raw mode is restored before the
// verb returns.
package stream
