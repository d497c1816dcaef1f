// Decodes environment entries that are not UTF-8 for a container's process. libcontainer passes the
// environment to a container's init as JSON, which cannot carry them. So they are encoded as
// "_KURI_RAW_<n>=<hex of KEY=value>", and the init executes this program in the container, which
// decodes them and executes the requested program. It runs in a constructor, before the Go program.
// Arguments: this program, the requested program, its arguments.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PREFIX "_KURI_RAW_"

static int digit(char c)
{
	return c <= '9' ? c - '0' : c - 'a' + 10;
}

// decode decodes the hex digits of an entry in place.
static char *decode(char *hex)
{
	char *out = hex;

	for (char *in = hex; in[0] && in[1]; in += 2)
		*out++ = digit(in[0]) << 4 | digit(in[1]);
	*out = 0;
	return hex;
}

__attribute__((constructor)) static void kuri_raw_env(int argc, char **argv, char **envp)
{
	int raw = 0;

	for (char **e = envp; *e; e++) {
		char *value = strncmp(*e, PREFIX, strlen(PREFIX)) ? NULL : strchr(*e, '=');

		if (value) {
			*e = decode(value + 1);
			raw = 1;
		}
	}
	if (!raw || argc < 2)
		return;
	execvpe(argv[1], argv + 1, envp);
	dprintf(2, "exec %s: %s\n", argv[1], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}
