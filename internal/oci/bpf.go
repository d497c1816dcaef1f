package oci

import (
	"encoding/binary"
	"runtime"

	"golang.org/x/sys/unix"
)

// auditArch is this machine's architecture as passed to seccomp(2) filters; 0 if it is unknown.
var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]

// allows reports whether the filter allows a system call. It is also false if the program has an
// instruction that libseccomp does not generate.
func (f *filter) allows(nr uint32, args ...uint64) bool {
	answer, ok := run(f.program, callData(auditArch, nr, args...))
	answer &= unix.SECCOMP_RET_ACTION_FULL
	return ok && (answer == unix.SECCOMP_RET_ALLOW || answer == unix.SECCOMP_RET_LOG)
}

// callData returns the data on which a filter decides, struct seccomp_data.
func callData(arch, nr uint32, args ...uint64) []byte {
	const size = 64 // number, architecture, instruction pointer, six arguments
	data := binary.NativeEndian.AppendUint32(make([]byte, 0, size), nr)
	data = binary.NativeEndian.AppendUint32(data, arch)
	data = binary.NativeEndian.AppendUint64(data, 0)
	for _, arg := range args {
		data = binary.NativeEndian.AppendUint64(data, arg)
	}
	return data[:size]
}

// run runs a classic BPF program (linux/filter.h) on data and returns its result. ok is false if
// the program is invalid or has an instruction that libseccomp does not generate.
func run(program, data []byte) (answer uint32, ok bool) {
	var a uint32
	for at := 0; 0 <= at && at+instructionSize <= len(program); at += instructionSize {
		code := binary.NativeEndian.Uint16(program[at:])
		yes, no := int(program[at+2]), int(program[at+3])
		k := binary.NativeEndian.Uint32(program[at+4:])
		met := false
		switch code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if uint64(k)+4 > uint64(len(data)) {
				return 0, false
			}
			a = binary.NativeEndian.Uint32(data[k:])
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= k
			continue
		case unix.BPF_RET | unix.BPF_K:
			return k, true
		case unix.BPF_JMP | unix.BPF_JA:
			if uint64(k) >= uint64(len(program)) {
				return 0, false
			}
			at += int(k) * instructionSize
			continue
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			met = a == k
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			met = a > k
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			met = a >= k
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			met = a&k != 0
		default:
			return 0, false
		}
		if met {
			at += yes * instructionSize
		} else {
			at += no * instructionSize
		}
	}
	return 0, false
}

// early reports whether the fork server may load the filter before the process enters the
// container's PID namespace, so that processes there cannot get hold of its CAP_SYS_ADMIN. The
// filter must allow all system calls between that point and the exec.
func (f *filter) early() bool {
	return f.allows(unix.SYS_CAPSET) && f.allows(unix.SYS_CLONE, unix.CLONE_PARENT) && f.talks() &&
		f.allows(unix.SYS_EXIT_GROUP) && f.allows(unix.SYS_SETSID) && f.allows(unix.SYS_PRLIMIT64) &&
		f.allows(unix.SYS_IOCTL, 0, unix.TIOCSCTTY)
}

// talks reports whether a process under the filter can report that it is at its start line, and can
// receive the byte that releases it.
func (f *filter) talks() bool {
	const talk = 3
	return f.allows(unix.SYS_WRITE, talk) && f.allows(unix.SYS_READ, talk)
}
