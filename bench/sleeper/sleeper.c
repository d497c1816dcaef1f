/*
 * sleeper: the workload of the bench. It sleeps until SIGTERM and exits with 0. With the argument
 * "true" it exits at once. With "serve" and a port it accepts connections on 127.0.0.1. A request is
 * a letter and a decimal number of 15 digits: 's' makes it send that many bytes, 'r' makes it
 * receive them and then confirm them with one byte. It is linked statically, so that an image needs
 * only this one file.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void end(int signal)
{
	(void)signal;
	_exit(0);
}

static void answer(int conn)
{
	static char piece[256 << 10];
	char ask[17] = "";
	long left;
	ssize_t n = recv(conn, ask, 16, MSG_WAITALL);

	if (n != 16)
		_exit(1);
	for (left = atol(ask + 1); left > 0; left -= n) {
		size_t most = left < (long)sizeof(piece) ? (size_t)left : sizeof(piece);

		n = *ask == 's' ? write(conn, piece, most) : read(conn, piece, most);
		if (n <= 0)
			_exit(1);
	}
	_exit(*ask == 'r' && write(conn, "k", 1) != 1);
}

static void serve(int port)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int sock = socket(AF_INET, SOCK_STREAM, 0), conn, yes = 1;

	signal(SIGCHLD, SIG_IGN);
	setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	if (bind(sock, (struct sockaddr *)&at, sizeof(at)) != 0 || listen(sock, 16) != 0)
		_exit(1);
	for (;;) {
		conn = accept(sock, NULL, NULL);
		if (conn >= 0 && fork() == 0)
			answer(conn);
		close(conn);
	}
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = end};

	if (argc > 1 && strcmp(argv[1], "true") == 0)
		return 0;
	sigaction(SIGTERM, &action, NULL); /* process 1 of a namespace gets only signals that it handles */
	sigaction(SIGINT, &action, NULL);
	if (argc > 2 && strcmp(argv[1], "serve") == 0)
		serve(atoi(argv[2]));
	for (;;)
		pause();
}
