package certsd

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// checkValues returns an error for a value that containerd's code would ignore or refuse without
// naming it. It names the table and the key, and does not quote an address with a user in it.
func checkValues(body []byte) error {
	var file map[string]any
	if err := toml.Unmarshal(body, &file); err != nil {
		return nil // the caller has checked that
	}
	if server, ok := file["server"]; ok && server != "" {
		if err := checkAddress(server); err != nil {
			return fmt.Errorf("server %w", err)
		}
	}
	if err := checkHost(file); err != nil {
		return err
	}
	hosts, ok := file["host"].(map[string]any)
	if file["host"] != nil && !ok {
		return errors.New(`host must be tables, each with an address: [host."https://mirror.example"]`)
	}
	for _, address := range slices.Sorted(maps.Keys(hosts)) {
		name := "host"
		if !strings.Contains(address, "@") {
			name = fmt.Sprintf("[host.%q]", address)
		}
		if err := checkAddress(address); err != nil {
			return fmt.Errorf("%s: the address %w", name, err)
		}
		host, ok := hosts[address].(map[string]any)
		if !ok {
			return fmt.Errorf("%s must be a table", name)
		}
		if err := checkHost(host); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// checkAddress checks the address of a host. containerd adds https:// only to an address that does
// not begin with "http".
func checkAddress(value any) error {
	bad := errors.New("must be a host, or a URL with https:// or http://")
	text, ok := value.(string)
	if !ok {
		return bad
	}
	switch {
	case strings.HasPrefix(text, "https://"), strings.HasPrefix(text, "http://"):
	case strings.Contains(text, "://"):
		return bad
	case strings.HasPrefix(text, "http"):
		return errors.New("begins with \"http\": write it with https:// or http://")
	default:
		text = "https://" + text
	}
	if u, err := url.Parse(text); err != nil || u.Host == "" {
		return bad
	}
	return nil
}

var capabilities = []string{"pull", "resolve", "push", "referrers"}

// checkHost checks the values of a host's table.
func checkHost(table map[string]any) error {
	for _, key := range slices.Sorted(maps.Keys(table)) {
		ok, must := true, ""
		switch value := table[key]; key {
		case "capabilities":
			must = `a list of "pull", "resolve", "push" and "referrers"`
			ok = isList(value, func(v any) bool {
				s, is := v.(string)
				return is && slices.Contains(capabilities, strings.ToLower(s))
			})
		case "ca":
			must, ok = "a path, or a list of paths", isPath(value) || isList(value, isPath)
		case "client":
			must = "a path, or a list of paths or of pairs of a certificate and a key"
			ok = isPath(value) || isList(value, func(v any) bool {
				pair, is := v.([]any)
				return isPath(v) || is && len(pair) == 2 && isList(v, isPath)
			})
		case "skip_verify", "override_path":
			must = "true or false"
			_, ok = value.(bool)
		case "dial_timeout":
			must, ok = `a duration, such as "5s"`, isTimeout(value)
		case "header":
			must = "a table of texts or of lists of texts"
			var header map[string]any
			header, ok = value.(map[string]any)
			for _, v := range header {
				ok = ok && (isText(v) || isList(v, isText))
			}
		}
		if !ok {
			return fmt.Errorf("%s must be %s", key, must)
		}
	}
	return nil
}

func isText(v any) bool { _, ok := v.(string); return ok }
func isPath(v any) bool { return isText(v) && v != "" }

// isTimeout reports whether a value is a timeout; "" is the default.
func isTimeout(v any) bool {
	text, ok := v.(string)
	d, err := time.ParseDuration(text)
	return ok && (text == "" || err == nil && d >= 0)
}

func isList(v any, ok func(any) bool) bool {
	list, is := v.([]any)
	return is && !slices.ContainsFunc(list, func(v any) bool { return !ok(v) })
}
