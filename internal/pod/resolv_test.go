package pod

import "testing"

func TestReachable(t *testing.T) {
	const stub, resolved = "nameserver 127.0.0.53\noptions edns0\nsearch lan\n",
		"# by resolved\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nsearch lan\n"
	const behind = "# by resolved\nnameserver 192.0.2.1\nsearch lan\n"
	for name, c := range map[string]struct {
		host, upstream, want string
		bad                  bool
	}{
		"ordinary":                      {"nameserver 9.9.9.9\n", resolved, "nameserver 9.9.9.9\n", false},
		"stub":                          {stub, resolved, behind, false},
		"IPv6 stub":                     {"nameserver ::1", resolved, behind, false},
		"mapped stub":                   {"nameserver ::ffff:127.0.0.53", resolved, behind, false},
		"stub, nothing behind":          {stub, "nameserver 127.0.0.1\n", stub, true},
		"stub, what is behind is local": {stub, "nameserver fe80::1%eth0\n", stub, true},
		"stub, no resolved":             {stub, "", stub, true},
		"no server at all":              {"", "", "", true},
		"no server, but of resolved":    {"search lan\n", resolved, behind, false},
		"one of two is on the loopback": {"nameserver 127.0.0.1\n\tnameserver 9.9.9.9", "", "\tnameserver 9.9.9.9", false},
		"one of two is on a link": {"nameserver fe80::1%eth0\nnameserver 9.9.9.9\noptions rotate\n", "",
			"nameserver 9.9.9.9\noptions rotate\n", false},
		"a router alone":                 {"nameserver fe80::1%eth0\n", "", "nameserver fe80::1%eth0\n", true},
		"a cloud's, link-local for IPv4": {"nameserver 169.254.169.253\n", "", "nameserver 169.254.169.253\n", false},
		"not an address":                 {"nameserver\nnameserver x\n", resolved, "nameserver\nnameserver x\n", false},
		"comments and options are kept": {"# nameserver 127.0.0.1\nsearch a b\nnameserver 2001:db8::53\noptions ndots:2\n",
			"", "# nameserver 127.0.0.1\nsearch a b\nnameserver 2001:db8::53\noptions ndots:2\n", false},
	} {
		got, ok := reachable([]byte(c.host), []byte(c.upstream))
		if string(got) != c.want || ok == c.bad {
			t.Errorf("%s: %q, %v; want %q", name, got, ok, c.want)
		}
	}
}
