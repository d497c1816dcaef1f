package top

import (
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A key is a character, or one of these.
const (
	keyUp rune = -1 - iota
	keyDown
	keyPageUp
	keyPageDown
	keyHome
	keyEnd
	keyEscape
	keyOther // a sequence without a meaning here
)

// sequences maps terminals' key sequences, without the escape character: those of xterm, in both of
// its modes, and of the Linux console.
var sequences = map[string]rune{
	"[A": keyUp, "OA": keyUp, "[B": keyDown, "OB": keyDown, "[5~": keyPageUp, "[6~": keyPageDown,
	"[H": keyHome, "OH": keyHome, "[1~": keyHome, "[7~": keyHome, "[F": keyEnd, "OF": keyEnd, "[4~": keyEnd, "[8~": keyEnd,
}

// readKeys parses the keys in a terminal's input. rest may be the beginning of a key: pass it again
// together with further input, or with last set if none comes, so that an escape counts as a key.
func readKeys(in []byte, last bool) (keys []rune, rest []byte) {
	for len(in) > 0 {
		if in[0] != 0x1b {
			if !utf8.FullRune(in) && !last {
				return keys, in
			}
			r, n := utf8.DecodeRune(in)
			keys, in = append(keys, r), in[n:]
			continue
		}
		n := sequenceLength(in)
		switch {
		case n == 0 && !last:
			return keys, in
		case n == 0 || n == 1:
			keys, in = append(keys, keyEscape), in[1:]
			continue
		}
		key, ok := sequences[string(in[1:n])]
		if !ok {
			key = keyOther
		}
		keys, in = append(keys, key), in[n:]
	}
	return keys, nil
}

// sequenceLength returns the length of the sequence that begins with an escape: 1 if it is a lone
// escape, 0 if it is incomplete.
func sequenceLength(in []byte) int {
	if len(in) == 1 {
		return 0
	}
	switch in[1] {
	case 'O':
		if len(in) < 3 {
			return 0
		}
		return 3
	case '[':
		for i := 2; i < len(in); i++ {
			if in[i] >= 0x40 && in[i] <= 0x7e { // ECMA-48: the final byte
				return i + 1
			}
		}
		return 0
	}
	return 1
}

// action is the effect of a key on the loop.
type action int

// The actions. Keys that only change the view have none.
const (
	goOn action = iota
	quit
	sampleNow
	suspend
)

// topPage is the number of rows that a page key moves.
const topPage = 10

// press changes the view according to a key.
func (v *topView) press(key rune) action {
	v.notice = ""
	switch {
	case key == 3: // Ctrl-C
		return quit
	case key == 26: // Ctrl-Z
		return suspend
	case v.prompt != "":
		return v.typing(key)
	case v.help:
		v.help = false
		return goOn
	}
	if i := slices.IndexFunc(topOrders, func(o topOrder) bool { return rune(o.key) == key }); i >= 0 {
		v.order, v.reverse = i, false
		return goOn
	}
	switch key {
	case 'q':
		return quit
	case ' ':
		return sampleNow
	case 'h', '?':
		v.help = true
	case 'R':
		v.reverse = !v.reverse
	case '<':
		v.order = max(0, v.order-1)
	case '>':
		v.order = min(len(topOrders)-1, v.order+1)
	case '\t':
		v.show(!v.containers, "")
	case 'p':
		v.show(false, "")
	case 'c':
		v.show(true, "")
	case '\r', '\n':
		if rows := v.rows(); !v.containers && len(rows) > 0 {
			v.show(true, rows[v.at(rows)].Pod)
		}
	case keyEscape:
		switch {
		case v.filter != "":
			v.filter = ""
		case v.within != "":
			v.show(false, "")
		}
	case '/':
		v.prompt, v.typed = "/", v.filter
	case 'd', 's':
		v.prompt, v.typed = "d", ""
	case keyUp, 'k':
		v.move(-1)
	case keyDown, 'j':
		v.move(1)
	case keyPageUp:
		v.move(-topPage)
	case keyPageDown:
		v.move(topPage)
	case keyHome, 'g':
		v.move(-len(v.rows()))
	case keyEnd, 'G':
		v.move(len(v.rows()))
	}
	return goOn
}

// show switches between pods and containers.
func (v *topView) show(containers bool, within string) {
	v.containers, v.within, v.selected, v.first = containers, within, "", 0
}

// typing handles a key while a prompt is open.
func (v *topView) typing(key rune) action {
	switch {
	case key == keyEscape:
		if v.prompt == "/" {
			v.filter = ""
		}
		v.prompt = ""
		return goOn
	case key == '\r' || key == '\n':
		return v.typedIn()
	case key == 0x7f || key == '\b':
		if _, n := utf8.DecodeLastRuneInString(v.typed); n > 0 {
			v.typed = v.typed[:len(v.typed)-n]
		}
	case key == 21: // Ctrl-U
		v.typed = ""
	case key >= ' ' && len(v.typed) < 200:
		v.typed += string(key)
	}
	if v.prompt == "/" { // filter while the user types
		v.filter = v.typed
	}
	return goOn
}

func (v *topView) typedIn() action {
	prompt := v.prompt
	v.prompt = ""
	if prompt == "/" || v.typed == "" {
		return goOn
	}
	seconds, err := strconv.ParseFloat(strings.TrimSuffix(v.typed, "s"), 64)
	if err != nil || !(seconds >= leastDelay.Seconds() && seconds <= mostDelay.Seconds()) {
		v.notice = "expected seconds from " + strconv.FormatFloat(leastDelay.Seconds(), 'g', -1, 64) + " to 3600, such as 2.5"
		return goOn
	}
	v.delay = time.Duration(seconds * float64(time.Second))
	return sampleNow
}
