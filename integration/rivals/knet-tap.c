/* A tap on a kronosnet link, for the comparison of integration/run bench.
 *
 *   knet-tap HOST_ID TAP OWN_ADDRESS PEER_ADDRESS PORT KEY_FILE
 *
 * Two hosts, 1 and 2, one UDP link, AES-256 with HMAC-SHA-256 by libknet's openssl plugin. The tap
 * is handed to libknet as a data descriptor, so libknet itself reads and writes it: nothing of ours
 * is between the two. The tap's MTU follows what libknet says a datagram of the path takes, so
 * that no frame is sent in pieces. IPv4 only. Ends on SIGTERM; the tap goes with it.
 *
 * cc -O2 -o knet-tap knet-tap.c -lknet
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <libknet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Of an Ethernet frame: a tap's MTU does not count it, libknet's data MTU does. */
#define ETHERNET_HEADER 14
/* How often, in microseconds, the main thread looks for a new MTU. */
#define LOOK_INTERVAL 50000

static atomic_uint data_mtu;
static volatile sig_atomic_t stop;

static void fail(const char *what) {
    fprintf(stderr, "knet-tap: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void on_signal(int number) {
    (void)number;
    stop = 1;
}

static void on_mtu(void *context, unsigned int bytes) {
    (void)context;
    atomic_store(&data_mtu, bytes);
}

/* Errors of the tap, while it is still down for example: nothing to do about them. */
static void on_socket(void *context, int fd, int8_t channel, uint8_t direction, int error,
                      int number) {
    (void)context, (void)fd, (void)channel, (void)direction, (void)error, (void)number;
}

/* Everything goes to the other one. */
static int to_peer(void *context, const unsigned char *frame, ssize_t length, uint8_t direction,
                   knet_node_id_t self, knet_node_id_t source, int8_t *channel,
                   knet_node_id_t *hosts, size_t *count) {
    (void)context, (void)frame, (void)length, (void)source, (void)channel;
    hosts[0] = direction == KNET_NOTIFY_TX ? 3 - self : self;
    *count = 1;
    return 0;
}

static int open_tap(const char *name) {
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0)
        fail("tap");
    return fd;
}

/* What is read from a tap that is down is an error, at which libknet would leave it: up first. */
static void set_up(int control, const char *name) {
    struct ifreq request = {0};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(control, SIOCGIFFLAGS, &request) < 0)
        fail("flags of the tap");
    request.ifr_flags |= IFF_UP;
    if (ioctl(control, SIOCSIFFLAGS, &request) < 0)
        fail("setting the tap up");
}

static void set_mtu(int control, const char *name, int bytes) {
    struct ifreq request = {.ifr_mtu = bytes};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(control, SIOCSIFMTU, &request) < 0)
        fail("MTU of the tap");
}

static void encrypt(knet_handle_t knet, const char *key_file) {
    struct knet_handle_crypto_cfg config = {
        .crypto_model = "openssl", .crypto_cipher_type = "aes256", .crypto_hash_type = "sha256"};
    FILE *file = fopen(key_file, "rb");
    if (!file)
        fail(key_file);
    config.private_key_len = fread(config.private_key, 1, KNET_MAX_KEY_LEN, file);
    fclose(file);
    if (config.private_key_len < KNET_MIN_KEY_LEN) {
        errno = EINVAL;
        fail("a key has 128 bytes or more");
    }
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

int main(int argc, char **argv) {
    if (argc != 7) {
        fprintf(stderr, "knet-tap HOST_ID TAP OWN_ADDRESS PEER_ADDRESS PORT KEY_FILE\n");
        return 2;
    }
    knet_node_id_t self = (knet_node_id_t)atoi(argv[1]);
    if (self != 1 && self != 2) {
        fprintf(stderr, "knet-tap: HOST_ID is 1 or 2\n");
        return 2;
    }
    knet_node_id_t peer = 3 - self;
    struct sockaddr_storage own = address(argv[3], argv[5]), other = address(argv[4], argv[5]);

    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int tap = open_tap(argv[2]);
    set_up(control, argv[2]);
    knet_handle_t knet = knet_handle_new(self, 0, KNET_LOG_ERR);
    if (!knet)
        fail("knet_handle_new");
    encrypt(knet, argv[6]);
    int8_t channel = 0;
    if (knet_handle_enable_sock_notify(knet, NULL, on_socket) ||
        knet_handle_enable_pmtud_notify(knet, NULL, on_mtu) ||
        knet_handle_enable_filter(knet, NULL, to_peer) ||
        knet_handle_add_datafd(knet, &tap, &channel))
        fail("handle");
    if (knet_host_add(knet, peer) ||
        knet_link_set_config(knet, peer, 0, KNET_TRANSPORT_UDP, &own, &other, 0) ||
        knet_link_set_enable(knet, peer, 0, 1) || knet_handle_setfwd(knet, 1))
        fail("link");

    unsigned int now = 0;
    while (!stop) {
        unsigned int found = atomic_load(&data_mtu);
        if (found != now && found > ETHERNET_HEADER) {
            set_mtu(control, argv[2], (int)found - ETHERNET_HEADER);
            now = found;
        }
        usleep(LOOK_INTERVAL);
    }
    return 0;
}
