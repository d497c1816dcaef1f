package pod

import "testing"

func TestReachable(t *testing.T) {
	const stub, resolved = "nameserver 127.0.0.53\noptions edns0\nsearch lan\n", "# by resolved\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nsearch lan\n"
	for name, c := range map[string]struct {
		host, upstream, want string
		bad                  bool
	}{
		"ordinary":             {"nameserver 9.9.9.9\n", resolved, "nameserver 9.9.9.9\n", false},
		"empty":                {"", resolved, "", false},
		"stub":                 {stub, resolved, resolved, false},
		"IPv6 stub":            {"nameserver ::1", resolved, resolved, false},
		"stub, nothing behind": {stub, "nameserver 127.0.0.1\n", stub, true},
		"stub, no resolved":    {stub, "", stub, true},
		"one of two is local":  {"nameserver 127.0.0.1\n\tnameserver 9.9.9.9", "", "\tnameserver 9.9.9.9", false},
		"not an address":       {"nameserver\nnameserver x\n", resolved, "nameserver\nnameserver x\n", false},
	} {
		got, ok := reachable([]byte(c.host), []byte(c.upstream))
		if string(got) != c.want || ok == c.bad {
			t.Errorf("%s: %q, %v; want %q", name, got, ok, c.want)
		}
	}
}
