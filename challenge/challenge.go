package challenge

import (
	"net/http"
	"strings"
)

// Challenge is one authentication challenge of a server (RFC 9110, section 11.6.1).
type Challenge struct {
	Scheme string            // in lower case: "basic", "bearer"
	Params map[string]string // by lower-case name
}

// Of parses the WWW-Authenticate headers. One header may hold several challenges.
func Of(header http.Header) []Challenge {
	var found []Challenge
	for _, value := range header.Values("WWW-Authenticate") {
		found = append(found, parse(value)...)
	}
	return found
}

// parse parses `Scheme name=value, name="quoted value", Scheme …` up to the first syntax error.
func parse(s string) []Challenge {
	var found []Challenge
	for {
		s = strings.TrimLeft(s, " \t,")
		word, rest := cutToken(s)
		if word == "" {
			return found
		}
		if after := strings.TrimLeft(rest, " \t"); len(found) > 0 && strings.HasPrefix(after, "=") {
			value, rest, ok := cutValue(strings.TrimLeft(after[1:], " \t"))
			if !ok {
				return found
			}
			found[len(found)-1].Params[strings.ToLower(word)] = value
			s = rest
			continue
		}
		found = append(found, Challenge{strings.ToLower(word), make(map[string]string)})
		s = rest
	}
}

// cutToken cuts a token (RFC 9110) off the beginning of s.
func cutToken(s string) (token, rest string) {
	end := strings.IndexFunc(s, func(c rune) bool {
		return c <= ' ' || c >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c)
	})
	if end < 0 {
		end = len(s)
	}
	return s[:end], s[end:]
}

// cutValue cuts a value off the beginning of s: a quoted string, or everything up to the next comma
// or space, because some registries do not quote URLs.
func cutValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, ", \t")
		if end < 0 {
			end = len(s)
		}
		return s[:end], s[end:], true
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}
