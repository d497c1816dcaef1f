# Functions for the scripts that run after a removal, in POSIX sh. scripts/dist puts them in place of
# the line with @processes.sh@. The number of programs that they start does not grow with the number
# of processes on the node.

# holders prints the process ids of the holders of /run/kuri, usually one or none. In a container or
# a chroot the same path is another directory, of another Kuri.
holders() {
	ours=$(stat -Lc %d:%i /run/kuri 2>/dev/null) || true
	# shellcheck disable=SC2013 # a path of /proc has no spaces
	for comm in $(grep -lx kuri-holder /proc/[0-9]*/comm 2>/dev/null); do
		dir=${comm%/comm}
		theirs=$(stat -Lc %d:%i "$dir/root/run/kuri" 2>/dev/null) || true
		[ "$theirs" = "$ours" ] || continue
		case "$( (tr '\0' ' ' <"$dir/cmdline") 2>/dev/null)" in
		*"kuri-holder --state /run/kuri "*) echo "${dir#/proc/}" ;;
		esac
	done
}

# pods reports whether the node has pods: network namespaces, or records of a keeper that runs.
pods() {
	for file in /run/netns/kuri-*; do
		[ ! -e "$file" ] || return 0
	done
	[ -n "$(holders)" ] || return 1
	for file in /run/kuri/keeper/sandboxes/*.json /run/kuri/keeper/containers/*.json; do
		[ ! -e "$file" ] || return 0
	done
	return 1
}

# end ends the holder, the keeper and the fork server of a node without pods. The holder forwards
# the signal to the keeper, which ignores it if it has pods after all. end reports whether the
# holder has exited, at the latest after ten seconds.
end() {
	for holder in $(holders); do
		tries=100
		while kill "$holder" 2>/dev/null; do
			[ "$tries" -gt 0 ] || return 1
			tries=$((tries - 1))
			sleep 0.1
		done
	done
}
