package oci

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"

	"golang.org/x/sys/unix"
)

// simplify returns a shorter seccomp program with the same result for every system call, or the
// program itself if there is none. Every process that loads a filter makes the kernel check and
// compile it, which takes time in proportion to its length. libseccomp compares with the number of
// each system call; a simplified program compares with the bounds of ranges of numbers.
//
// A program first branches on the architecture and the number of the call. [explore] finds the
// ranges of both that lead to the same instruction: one that returns, or the first one that loads
// something else. The new program searches these ranges, and continues with copies of the old
// instructions.
func simplify(program []byte) []byte {
	old := instructions(program)
	arches, ok := explore(old)
	if !ok {
		return program
	}
	shorter := assemble(old, arches)
	if len(shorter) >= len(old) || !sameNumbers(program, programOf(shorter), arches) {
		return program
	}
	return programOf(shorter)
}

// Instructions of a program that libseccomp generates, and where they find the number and the
// architecture in struct seccomp_data.
const (
	loadWord   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	returnK    = unix.BPF_RET | unix.BPF_K
	jump       = unix.BPF_JMP | unix.BPF_JA
	jumpEqual  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	jumpAbove  = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	jumpFrom   = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	jumpIfBits = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	andK       = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K

	numberOffset, archOffset = 0, 4
)

func instructions(program []byte) []unix.SockFilter {
	all := make([]unix.SockFilter, len(program)/instructionSize)
	for i := range all {
		b := program[i*instructionSize:]
		all[i] = unix.SockFilter{Code: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3],
			K: binary.NativeEndian.Uint32(b[4:])}
	}
	return all
}

func programOf(all []unix.SockFilter) []byte {
	var program []byte
	for _, i := range all {
		program = append(binary.NativeEndian.AppendUint16(program, i.Code), i.Jt, i.Jf)
		program = binary.NativeEndian.AppendUint32(program, i.K)
	}
	return program
}

// span is a range of values that lead to the same place.
type span struct{ first, last, to uint32 }

// archSpans are the architectures of a program: sorted spans that cover all values and lead to an
// index of numbers. Each element of numbers has sorted spans that cover all numbers of system calls
// and lead to an index of the program.
type archSpans struct {
	spans   []span
	numbers [][]span
}

// exploration follows all branches of a program on the architecture and the number.
type exploration struct {
	program []unix.SockFilter
	returns map[uint32]uint32 // first instruction that returns a value
	leaves  []leaf
}

// leaf is an instruction, and the architectures and numbers with which the program comes to it.
type leaf struct {
	arch, number span // their to is not used
	to           uint32
}

// maxLeaves bounds an exploration. The runtime's default profile has 1,100.
const maxLeaves = 1 << 14

// explore returns the ranges of a program. ok is false if it has a form that libseccomp does not
// generate.
func explore(program []unix.SockFilter) (_ *archSpans, ok bool) {
	e := &exploration{program: program, returns: make(map[uint32]uint32)}
	for i, in := range slices.Backward(program) {
		next := uint64(i) + 1
		switch in.Code {
		case returnK:
			e.returns[in.K] = uint32(i)
			continue
		case loadWord, andK:
		case jump:
			next += uint64(in.K)
		case jumpEqual, jumpAbove, jumpFrom, jumpIfBits:
			next += uint64(max(in.Jt, in.Jf))
		default:
			return nil, false
		}
		if next >= uint64(len(program)) {
			return nil, false
		}
	}
	all := span{last: math.MaxUint32}
	if len(program) == 0 || !e.follow(0, math.MaxUint32, all, all) {
		return nil, false
	}
	return e.sorted(), true
}

// follow follows the program from an instruction. loaded is the offset of the loaded field.
func (e *exploration) follow(at, loaded uint32, arch, number span) bool {
	for len(e.leaves) < maxLeaves {
		in := e.program[at]
		switch {
		case in.Code == returnK:
			e.leaves = append(e.leaves, leaf{arch, number, e.returns[in.K]})
			return true
		case in.Code == loadWord && in.K != numberOffset && in.K != archOffset:
			e.leaves = append(e.leaves, leaf{arch, number, at})
			return true
		case in.Code == loadWord:
			loaded = in.K
			at++
		case in.Code == jump:
			at += 1 + in.K
		default:
			return e.branch(at, loaded, arch, number)
		}
	}
	return false
}

// branch follows both ways of a comparison.
func (e *exploration) branch(at, loaded uint32, arch, number span) bool {
	in := e.program[at]
	yes, no := at+1+uint32(in.Jt), at+1+uint32(in.Jf)
	value := &number
	switch loaded {
	case numberOffset:
	case archOffset:
		value = &arch
	default:
		return false
	}
	ways, ok := split(in, yes, no)
	if !ok {
		return false
	}
	whole := *value
	for _, way := range ways {
		value.first, value.last = max(whole.first, way.first), min(whole.last, way.last)
		if value.first <= value.last && !e.follow(way.to, loaded, arch, number) {
			return false
		}
	}
	return true
}

// split returns the ranges of values with which a comparison goes either way.
func split(in unix.SockFilter, yes, no uint32) ([]span, bool) {
	k, end := in.K, uint32(math.MaxUint32)
	var ways []span
	add := func(first, last uint32, to uint32) { ways = append(ways, span{first, last, to}) }
	below := func(to uint32) {
		if k > 0 {
			add(0, k-1, to)
		}
	}
	above := func(to uint32) {
		if k < end {
			add(k+1, end, to)
		}
	}
	switch in.Code {
	case jumpEqual:
		below(no)
		add(k, k, yes)
		above(no)
	case jumpAbove:
		add(0, k, no)
		above(yes)
	case jumpFrom:
		below(no)
		add(k, end, yes)
	case jumpIfBits: // of an x32 system call, all else has too many ranges
		if k != 1<<30 {
			return nil, false
		}
		add(0, k-1, no)
		add(k, 2*k-1, yes)
		add(2*k, 3*k-1, no)
		add(3*k, end, yes)
	default:
		return nil, false
	}
	return ways, true
}

// sorted sorts the leaves by architecture and number.
func (e *exploration) sorted() *archSpans {
	slices.SortFunc(e.leaves, func(a, b leaf) int { return cmp.Compare(a.number.first, b.number.first) })
	var firsts []uint32
	for _, l := range e.leaves {
		firsts = append(firsts, l.arch.first)
	}
	slices.Sort(firsts)
	firsts = slices.Compact(firsts)
	all := &archSpans{}
	for i, first := range firsts {
		last := uint32(math.MaxUint32)
		if i+1 < len(firsts) {
			last = firsts[i+1] - 1
		}
		var numbers []span
		for _, l := range e.leaves {
			if l.arch.first <= first && first <= l.arch.last {
				numbers = join(numbers, span{l.number.first, l.number.last, l.to})
			}
		}
		same := slices.IndexFunc(all.numbers, func(other []span) bool { return slices.Equal(other, numbers) })
		if same < 0 {
			same = len(all.numbers)
			all.numbers = append(all.numbers, numbers)
		}
		all.spans = join(all.spans, span{first, last, uint32(same)})
	}
	return all
}

// join appends the next span, or extends the last one if both lead to the same place.
func join(spans []span, next span) []span {
	if n := len(spans); n > 0 && spans[n-1].to == next.to {
		spans[n-1].last = next.last
		return spans
	}
	return append(spans, next)
}

// assembler writes a program from its end, because jumps go only forward. A label is the position
// of an instruction, counted from the end.
type assembler struct {
	old    []unix.SockFilter
	code   []unix.SockFilter // reversed
	copied map[uint32]int    // labels of the old instructions
}

// assemble returns a program that searches the ranges and continues with the instructions of the
// old one.
func assemble(old []unix.SockFilter, arches *archSpans) []unix.SockFilter {
	a := &assembler{old: old, copied: make(map[uint32]int)}
	searches := make(map[uint32]int)
	a.before(unix.SockFilter{Code: loadWord, K: archOffset}, a.search(arches.spans, func(to uint32) int {
		label, ok := searches[to]
		if !ok {
			label = a.number(arches.numbers[to])
			searches[to] = label
		}
		return label
	}))
	slices.Reverse(a.code)
	return a.code
}

// number emits the search of a system call by its number.
func (a *assembler) number(spans []span) int {
	if len(spans) == 1 {
		return a.copy(spans[0].to)
	}
	return a.before(unix.SockFilter{Code: loadWord, K: numberOffset}, a.search(spans, a.copy))
}

// search emits a binary search of the loaded value, after what place emits.
func (a *assembler) search(spans []span, place func(to uint32) int) int {
	if values, rest, ok := exceptions(spans); ok {
		label := place(rest)
		for _, v := range values {
			label = a.branch(jumpEqual, v.first, place(v.to), label)
		}
		return label
	}
	half := len(spans) / 2
	above := a.search(spans[half:], place)
	return a.branch(jumpAbove, spans[half-1].last, above, a.search(spans[:half], place))
}

// maxExceptions is the number of values that a search compares one by one.
const maxExceptions = 4

// exceptions returns the few single values within spans that otherwise lead to one place. ok is
// false if the spans are not like that.
func exceptions(spans []span) (values []span, rest uint32, ok bool) {
	rest = spans[0].to
	for _, s := range spans {
		if s.first != s.last {
			rest = s.to
			break
		}
	}
	for _, s := range spans {
		if s.to != rest {
			values = append(values, s)
		}
		if s.to != rest && s.first != s.last || len(values) > maxExceptions {
			return nil, 0, false
		}
	}
	return values, rest, true
}

// jumpLimit is the greatest offset of a conditional jump; one less because another instruction may
// come between.
const jumpLimit = math.MaxUint8 - 1

// copy emits an old instruction and all that follow it, unless they are there. A return is emitted
// again if a conditional jump does not reach it.
func (a *assembler) copy(at uint32) int {
	in := a.old[at]
	label, ok := a.copied[at]
	if ok && (in.Code != returnK || a.offset(label) <= jumpLimit/2) {
		return label
	}
	switch in.Code {
	case returnK:
		a.code = append(a.code, in)
		label = len(a.code) - 1
	case jump:
		label = a.copy(at + 1 + in.K)
	case loadWord, andK:
		label = a.before(in, a.copy(at+1))
	default:
		no := a.copy(at + 1 + uint32(in.Jf))
		label = a.branch(in.Code, in.K, a.copy(at+1+uint32(in.Jt)), no)
	}
	a.copied[at] = label
	return label
}

// branch emits a conditional jump.
func (a *assembler) branch(code uint16, k uint32, yes, no int) int {
	yes = a.near(yes, jumpLimit)
	no = a.near(no, jumpLimit)
	a.code = append(a.code, unix.SockFilter{Code: code, Jt: uint8(a.offset(yes)), Jf: uint8(a.offset(no)), K: k})
	return len(a.code) - 1
}

// before emits an instruction that continues with the one at the label.
func (a *assembler) before(in unix.SockFilter, label int) int {
	a.near(label, 0)
	a.code = append(a.code, in)
	return len(a.code) - 1
}

// near returns the label, or that of a jump to it if its offset exceeds the limit.
func (a *assembler) near(label, limit int) int {
	if a.offset(label) <= limit {
		return label
	}
	a.code = append(a.code, unix.SockFilter{Code: jump, K: uint32(a.offset(label))})
	return len(a.code) - 1
}

// offset returns the offset of a jump to the label from the next instruction.
func (a *assembler) offset(label int) int { return len(a.code) - 1 - label }

// sameNumbers reports whether two programs agree on all system calls of all architectures without
// arguments, and with arguments of all ones. With given arguments, the result of a program changes
// only at numbers that it compares with.
func sameNumbers(one, other []byte, arches *archSpans) bool {
	numbers := []uint32{0, 1 << 30, 2 << 30, 3 << 30}
	for _, in := range append(instructions(one), instructions(other)...) {
		numbers = append(numbers, in.K, in.K+1)
	}
	slices.Sort(numbers)
	numbers = slices.Compact(numbers)
	for _, arch := range arches.spans {
		for _, a := range []uint32{arch.first, arch.last} {
			for _, number := range numbers {
				for _, argument := range []uint64{0, math.MaxUint64} {
					data := callData(a, number, argument, argument, argument, argument, argument, argument)
					got, ok := run(one, data)
					if want, wok := run(other, data); got != want || !ok || !wok {
						return false
					}
				}
			}
		}
	}
	return true
}
