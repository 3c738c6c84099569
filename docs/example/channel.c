/* A program on a channel of messages, in plain C; docs/channels.md has the records as a table.
 *
 *   cc -Wall -o channel channel.c
 *   ./channel /run/tapd-channels/letters 0 3 < file
 *
 * Sends standard input as one message to node 0 (all that can be reached), then writes 3 messages
 * that come to standard output and what else happens to standard error. */
#include <err.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum { ATTACH = 1, DATA = 2, PEER_UP = 0x11, ERROR = 0x16 }; /* those that are used here */
enum { MORE = 1, RECEIVE = 2, VERSION = 1, PIECE = 65520, LONGEST = 16 << 20 };

struct header { /* 16 bytes, in the byte order of the host */
	uint8_t type, flags, priority, count;
	uint16_t peer, code;
	uint32_t number, length;
};
static struct { struct header header; char payload[PIECE + 1]; } record;
static char message[LONGEST];

/* One packet. Blocks while tapd has no room: then the channel is as full as it may be. */
static void send_record(int fd, struct header header, const char *payload, size_t length)
{
	struct iovec parts[] = { { &header, sizeof header }, { (void *)payload, length } };
	struct msghdr packet = { .msg_iov = parts, .msg_iovlen = 2 };
	/* When tapd has hung up, what it sent last says why: reading finds it. */
	if (sendmsg(fd, &packet, MSG_NOSIGNAL) < 0 && errno != EPIPE && errno != ECONNRESET)
		err(1, "cannot send");
}

static void send_message(int fd, uint16_t peer, const char *bytes, uint32_t length)
{
	uint32_t sent = 0, piece;
	do { /* a message without bytes is one record too */
		piece = length - sent < PIECE ? length - sent : PIECE;
		send_record(fd, (struct header){ .type = DATA, .peer = peer, .length = length,
			.flags = sent + piece < length ? MORE : 0 }, bytes + sent, piece);
		sent += piece;
	} while (sent < length);
}

/* The next record; gives the bytes of its payload. */
static size_t receive(int fd)
{
	ssize_t got = recv(fd, &record, sizeof record - 1, 0);
	if (got < 0 && errno == ECONNRESET) /* said once, in front of what tapd sent last */
		got = recv(fd, &record, sizeof record - 1, 0);
	if (got < (ssize_t)sizeof record.header)
		errx(1, got ? "cannot receive: %s" : "tapd hung up", strerror(errno));
	record.payload[got - sizeof record.header] = 0; /* names and texts have no end of their own */
	return got - sizeof record.header;
}

int main(int count, char **words)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	if (count != 4)
		errx(2, "usage: channel SOCKET NODE COUNT < MESSAGE");
	strncpy(address.sun_path, words[1], sizeof address.sun_path - 1);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		err(1, "cannot connect to %s", words[1]);
	send_record(fd, (struct header){ .type = ATTACH, .flags = RECEIVE, .number = VERSION }, "", 0);
	size_t come = 0, length = fread(message, 1, sizeof message, stdin);
	for (int left = atoi(words[3]), is_sent = 0; left > 0;) {
		size_t payload = receive(fd);
		const struct header *header = &record.header;
		switch (header->type) {
		case DATA: /* pieces of one message come one after the other, in order */
			if (header->length > LONGEST || come + payload > header->length)
				errx(1, "pieces that do not add up");
			memcpy(message + come, record.payload, payload);
			come += payload;
			if (header->flags & MORE)
				break;
			fwrite(message, 1, come, stdout), come = 0, left--;
			break;
		case PEER_UP: /* the first peer is up: now somebody gets what is sent */
			fprintf(stderr, "node %u is %s\n", header->peer, record.payload);
			if (!is_sent++)
				send_message(fd, atoi(words[2]), message, length);
			break;
		case ERROR:
			errx(1, "%s (%s)", record.payload, strerror(header->code));
		default: /* WELCOME, and what becomes of peers */
			fprintf(stderr, "type %#x, node %u: %u\n", header->type, header->peer, header->number);
		}
	}
	return fflush(stdout);
}
