package certsd

import (
	"strings"
	"testing"
)

func TestCheckValues(t *testing.T) {
	host := "[host.'https://b']\n"
	for file, says := range map[string]string{
		"server = 5":                                "server must be a host, or a URL",
		"server = ['a']":                            "server must be a host, or a URL",
		"server = 'ftp://a'":                        "server must be a host, or a URL",
		"server = 'HTTP://a'":                       "server must be a host, or a URL",
		"server = 'http://'":                        "server must be a host, or a URL",
		"server = 'httpd'":                          "write it with https:// or http://",
		"server = ' a'":                             "server must be a host, or a URL",
		"host = 'a'":                                `host must be tables, each with an address: [host."https://mirror.example"]`,
		"[[host]]\nx = 1":                           "host must be tables",
		"[host]\na = 'b'":                           `[host."a"] must be a table`,
		"[host.'']":                                 `[host.""]: the address must be a host`,
		"[host.'x://u:secret@a']":                   "host: the address must be a host",
		host + "capabilities = 'pull'":              `[host."https://b"]: capabilities must be a list of "pull"`,
		host + "capabilities = ['pul']":             "capabilities must be a list",
		host + "ca = 5":                             "ca must be a path",
		host + "ca = ''":                            "ca must be a path",
		host + "ca = ['a', '']":                     "ca must be a path",
		host + "client = 5":                         "client must be a path",
		host + "client = [['a']]":                   "pairs of a certificate and a key",
		host + "skip_verify = 'true'":               "skip_verify must be true or false",
		host + "override_path = 1":                  "override_path must be true or false",
		host + "dial_timeout = 5":                   `dial_timeout must be a duration, such as "5s"`,
		host + "dial_timeout = '5'":                 "dial_timeout must be a duration",
		host + "dial_timeout = '-1s'":               "dial_timeout must be a duration",
		host + "header = 'x'":                       "header must be a table",
		"[host.'https://b'.header]\nX = 5":          "header must be a table",
		"[host.'https://b'.header]\nX = ['a', 5]":   "header must be a table",
		"server = ''\ncapabilities = []":            "",
		"server = 'a:5000/v2/'\nskip_verify = true": "",
		"server = 'https://[::1]:5'":                "",
		"[host]":                                    "",
		"[host.'http://u:secret@a']":                "",
		host + "capabilities = ['PULL', 'referrers']\nca = ['a']\nclient = [['a', 'b'], ['c', 'd']]\ndial_timeout = ''": "",
		host + "ca = 'a'\nclient = 'b'\noverride_path = false\ndial_timeout = '0s'\nheader = {X = 'a', Y = ['b']}":      "",
		host + "client = ['a', 'b']\nauth = {username = 'x'}":                                                           "",
	} {
		_, err := Check([]byte(file))
		if (err == nil) != (says == "") ||
			err != nil && (!strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%q: %v", file, err)
		}
	}
}
