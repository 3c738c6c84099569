/* Messages over a kronosnet link, for the comparison of integration/run bench.
 *
 *   knet-messages HOST_ID OWN_ADDRESS PEER_ADDRESS PORT KEY_FILE|- WORK SIZE SECONDS
 *
 * Two hosts, 1 and 2, one UDP link, in clear (-) or AES-256 with HMAC-SHA-256 by libknet's openssl
 * plugin. This program is what an application of libknet is: it writes messages to the descriptor
 * that libknet made, and reads them there. IPv4 only. WORK is one of
 *
 *   echo   sends back what comes, until SIGTERM
 *   ping   one message at a time, there and back: {"count", "lost", "p50_us", "p99_us"}
 *   sink   counts what comes, until nothing has for a while: {"count", "seconds"}
 *   flood  writes as fast as libknet takes it: {"count", "seconds"}
 *
 * Times and counts are JSON on standard output. "up" comes first, when the peer can be reached.
 *
 * cc -O2 -o knet-messages knet-messages.c -lknet
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <libknet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Heartbeats that are quicker than libknet's own only make the link come up sooner: ms, ms, and
 * samples of the average. */
#define PING_INTERVAL 200
#define PING_TIMEOUT 2000
#define PRECISION 2048
#define PONGS 2
/* How often, in microseconds, and how long, in looks, the peer is waited for. */
#define LOOK_INTERVAL 20000
#define LOOKS 1000
/* An answer that takes longer counts as lost, and a sink that gets nothing for so long is done:
 * microseconds. */
#define PATIENCE 300000
/* A sink waits so long for the first one: seconds. */
#define FIRST_PATIENCE 30
/* Round trips before the measured ones. */
#define WARM_UP 50
/* Round trips that are kept. */
#define MAX_TRIPS 4000000

static knet_handle_t knet;
static int8_t channel = 0;
static int descriptor = 0;
static char message[KNET_MAX_PACKET_SIZE];

static void fail(const char *what) {
    fprintf(stderr, "knet-messages: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void on_socket(void *context, int fd, int8_t number, uint8_t direction, int error,
                      int code) {
    (void)context, (void)fd, (void)number, (void)direction, (void)error, (void)code;
}

/* Everything goes to the other one. */
static int to_peer(void *context, const unsigned char *data, ssize_t length, uint8_t direction,
                   knet_node_id_t self, knet_node_id_t source, int8_t *number,
                   knet_node_id_t *hosts, size_t *count) {
    (void)context, (void)data, (void)length, (void)source, (void)number;
    hosts[0] = direction == KNET_NOTIFY_TX ? 3 - self : self;
    *count = 1;
    return 0;
}

static void encrypt(const char *key_file) {
    struct knet_handle_crypto_cfg config = {
        .crypto_model = "openssl", .crypto_cipher_type = "aes256", .crypto_hash_type = "sha256"};
    FILE *file = fopen(key_file, "rb");
    if (!file)
        fail(key_file);
    config.private_key_len = fread(config.private_key, 1, KNET_MAX_KEY_LEN, file);
    fclose(file);
    if (knet_handle_crypto_set_config(knet, &config, 1) || knet_handle_crypto_use_config(knet, 1) ||
        knet_handle_crypto_rx_clear_traffic(knet, KNET_CRYPTO_RX_DISALLOW_CLEAR_TRAFFIC))
        fail("crypto");
}

static struct sockaddr_storage address(const char *host, const char *port) {
    struct sockaddr_storage storage = {0};
    struct sockaddr_in *v4 = (struct sockaddr_in *)&storage;
    v4->sin_family = AF_INET;
    v4->sin_port = htons((uint16_t)atoi(port));
    if (inet_pton(AF_INET, host, &v4->sin_addr) != 1) {
        errno = EINVAL;
        fail(host);
    }
    return storage;
}

/* Waits for a message; 0 if none comes in time. */
static ssize_t receive(void) {
    ssize_t length = knet_recv(knet, message, sizeof message, channel);
    if (length < 0 && errno != EAGAIN && errno != EINTR)
        fail("receiving");
    return length < 0 ? 0 : length;
}

static void set_patience(long seconds, long microseconds) {
    struct timeval time = {.tv_sec = seconds, .tv_usec = microseconds};
    if (setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time))
        fail("patience");
}

static void send_message(size_t size) {
    while (knet_send(knet, message, size, channel) < 0)
        if (errno != EINTR && errno != EAGAIN)
            fail("sending");
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void ping(size_t size, double seconds) {
    double *trips = malloc(MAX_TRIPS * sizeof *trips);
    if (!trips)
        fail("memory");
    size_t count = 0, lost = 0;
    double start = now();
    set_patience(0, PATIENCE);
    for (uint64_t number = 0; count < MAX_TRIPS; number++) {
        if (number == WARM_UP)
            start = now(), count = 0, lost = 0;
        if (number >= WARM_UP && now() - start >= seconds)
            break;
        memcpy(message, &number, sizeof number);
        double sent = now();
        send_message(size);
        uint64_t answer = number + 1;
        /* A late answer to an earlier number is not this one's. */
        while (answer != number && receive() > 0)
            memcpy(&answer, message, sizeof answer);
        if (answer == number)
            trips[count++] = (now() - sent) * 1e6;
        else
            lost++;
    }
    if (!count) {
        errno = ETIMEDOUT;
        fail("no answer");
    }
    qsort(trips, count, sizeof *trips, by_size);
    printf("{\"count\":%zu,\"lost\":%zu,\"p50_us\":%.2f,\"p99_us\":%.2f}\n", count, lost,
           trips[(count - 1) / 2], trips[(count - 1) * 99 / 100]);
}

static void sink(void) {
    size_t count = 0;
    double first = 0, last = 0;
    set_patience(FIRST_PATIENCE, 0);
    while (receive() > 0) {
        last = now();
        if (!count++) {
            first = last;
            set_patience(0, PATIENCE);
        }
    }
    printf("{\"count\":%zu,\"seconds\":%.6f}\n", count, last - first);
}

static void flood(size_t size, double seconds) {
    size_t count = 0;
    double start = now();
    for (; now() - start < seconds; count++)
        send_message(size);
    printf("{\"count\":%zu,\"seconds\":%.6f}\n", count, now() - start);
    fflush(stdout);
    /* What libknet holds still leaves. */
    usleep(2 * PATIENCE);
}

static void start(char **argv) {
    knet_node_id_t self = (knet_node_id_t)atoi(argv[1]), peer = 3 - self;
    struct sockaddr_storage own = address(argv[2], argv[4]), other = address(argv[3], argv[4]);
    knet = knet_handle_new(self, 0, KNET_LOG_ERR);
    if (!knet)
        fail("knet_handle_new");
    if (strcmp(argv[5], "-"))
        encrypt(argv[5]);
    if (knet_handle_enable_sock_notify(knet, NULL, on_socket) ||
        knet_handle_enable_filter(knet, NULL, to_peer) ||
        knet_handle_add_datafd(knet, &descriptor, &channel))
        fail("handle");
    /* Our end waits; libknet's does not. */
    if (fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) & ~O_NONBLOCK))
        fail("descriptor");
    if (knet_host_add(knet, peer) ||
        knet_link_set_config(knet, peer, 0, KNET_TRANSPORT_UDP, &own, &other, 0) ||
        knet_link_set_ping_timers(knet, peer, 0, PING_INTERVAL, PING_TIMEOUT, PRECISION) ||
        knet_link_set_pong_count(knet, peer, 0, PONGS) ||
        knet_link_set_enable(knet, peer, 0, 1) || knet_handle_setfwd(knet, 1))
        fail("link");
    struct knet_host_status status = {0};
    for (int look = 0; !status.reachable; look++) {
        if (look == LOOKS || knet_host_get_status(knet, peer, &status))
            fail("waiting for the peer");
        usleep(LOOK_INTERVAL);
    }
    printf("up\n");
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 9 || (strcmp(argv[1], "1") && strcmp(argv[1], "2")) || atoi(argv[7]) < 8 ||
        atoi(argv[7]) > KNET_MAX_PACKET_SIZE) {
        fprintf(stderr, "knet-messages 1|2 OWN_ADDRESS PEER_ADDRESS PORT KEY_FILE|- "
                        "echo|ping|sink|flood SIZE SECONDS\n");
        return 2;
    }
    start(argv);
    size_t size = (size_t)atoi(argv[7]);
    double seconds = atof(argv[8]);
    if (!strcmp(argv[6], "ping"))
        ping(size, seconds);
    else if (!strcmp(argv[6], "sink"))
        sink();
    else if (!strcmp(argv[6], "flood"))
        flood(size, seconds);
    else
        for (ssize_t length;;)
            if ((length = receive()) > 0)
                send_message((size_t)length);
    return 0;
}
