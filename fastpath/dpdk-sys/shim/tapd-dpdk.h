/* SPDX-License-Identifier: Apache-2.0
 *
 * The narrow interface between tapd and DPDK.
 *
 * tapd itself is built without DPDK and loads this shim at run time; each distribution builds the
 * shim against its own DPDK (22.11 and later), whose inline functions and structures stay on this
 * side. The interface is versioned: TD_ABI grows with every change that is not an addition at the
 * end, and tapd refuses a shim with another number.
 *
 * Results are 0 or a count, or the negative of an errno. All sizes are in bytes.
 */
#ifndef TAPD_DPDK_H
#define TAPD_DPDK_H

#include <stddef.h>
#include <stdint.h>

#define TD_ABI 2

/* Of a received packet. */
#define TD_RX_L4_PARTIAL (1u << 0) /* the L4 checksum holds the pseudo-header sum only */
#define TD_RX_L4_GOOD    (1u << 1)
#define TD_RX_L4_BAD     (1u << 2)
#define TD_RX_IP_BAD     (1u << 3)
#define TD_RX_IP_GOOD    (1u << 4)
#define TD_RX_SUPER      (1u << 5) /* stands for several segments of `segment_size` payload bytes */
/* Of a packet to be sent. */
#define TD_TX_MORE       (1u << 16) /* the next one is a further segment of the same packet */
#define TD_TX_IPV4       (1u << 17)
#define TD_TX_IPV6       (1u << 18)
#define TD_TX_TCP_SUM    (1u << 19) /* the device or guest completes the TCP checksum */
#define TD_TX_UDP_SUM    (1u << 20)
#define TD_TX_TCP_SEG    (1u << 21) /* and cuts it into segments */

/* What a port can do, and what it is to do. */
#define TD_CAP_RX_L4_SUM  (1u << 0)
#define TD_CAP_RX_IP_SUM  (1u << 1)
#define TD_CAP_RX_SCATTER (1u << 2)
#define TD_CAP_TX_TCP_SUM (1u << 3)
#define TD_CAP_TX_UDP_SUM (1u << 4)
#define TD_CAP_TX_IP_SUM  (1u << 5)
#define TD_CAP_TX_TCP_SEG (1u << 6)
#define TD_CAP_TX_MULTI   (1u << 7) /* packets of several segments */
#define TD_CAP_RX_LRO     (1u << 8)

struct td_packet {
	void *mbuf;
	uint8_t *data;         /* first byte of the first segment */
	uint32_t len;          /* bytes of the first segment */
	uint32_t total;        /* bytes of all segments */
	uint32_t room;         /* bytes that may be written at data */
	uint32_t flags;
	uint16_t segments;
	uint16_t segment_size; /* payload bytes of each segment of a super-frame */
	uint16_t l2_len;       /* header lengths; only where a flag asks for work */
	uint16_t l3_len;
	uint16_t l4_len;
	uint16_t reserved[3];
};

struct td_port_info {
	char driver[32];
	uint8_t mac[6];
	uint16_t max_rx_queues;
	uint16_t max_tx_queues;
	uint16_t min_mtu;
	uint16_t max_mtu;
	uint16_t mtu;
	uint32_t max_frame_len;
	uint32_t capabilities;
	int32_t numa_node;
	uint32_t if_index; /* kernel interface behind the port; 0 without one */
};

struct td_port_config {
	uint16_t rx_queues;
	uint16_t tx_queues;
	uint16_t rx_descriptors;
	uint16_t tx_descriptors;
	uint16_t mtu;          /* largest layer-3 packet; 0 leaves the driver's own */
	uint16_t rx_interrupts; /* wanted, and configured; td_rx_wait says whether they are there */
	uint32_t capabilities; /* to be used; those that the port lacks are left out */
	void *pool;
};

struct td_stats {
	uint64_t rx_packets, tx_packets, rx_bytes, tx_bytes;
	uint64_t rx_missed; /* dropped by the port, its ring being full */
	uint64_t rx_errors, tx_errors;
	uint64_t rx_no_mbuf; /* no buffer was left */
};

struct td_link {
	uint32_t speed_mbps;
	uint8_t up;
	uint8_t full_duplex;
	uint8_t reserved[2];
};

typedef void (*td_log_fn)(uint32_t level, const char *text, size_t len);

uint32_t td_abi(void);
const char *td_version(void);
/* Before td_eal_init: lines of DPDK's log go there, whichever thread writes them. */
int td_log_to(td_log_fn log);
int td_eal_init(int argc, char **argv);
int td_thread_register(void);
void td_thread_unregister(void);

int td_pool_new(const char *name, uint32_t count, uint32_t cache, uint16_t room, void **pool);
void td_pool_free(void *pool);
uint32_t td_pool_in_use(const void *pool);

/* `device` is a PCI address or a virtual device's name, `args` its arguments. */
int td_port_add(const char *device, const char *args, uint16_t *port);
int td_port_remove(uint16_t port);
int td_port_info(uint16_t port, struct td_port_info *info);
/* Configures, sets the queues up and starts; gives back what is used. */
int td_port_start(uint16_t port, struct td_port_config *config);
int td_port_stop(uint16_t port);
int td_port_stats(uint16_t port, struct td_stats *stats);
int td_port_link(uint16_t port, struct td_link *link);
int td_port_set_mac(uint16_t port, const uint8_t *mac);
int td_port_promiscuous(uint16_t port, int on);
int td_port_all_multicast(uint16_t port, int on);

uint16_t td_rx(uint16_t port, uint16_t queue, struct td_packet *packets, uint16_t count);
/* Sends `count` entries, tries again up to `retries` times while the port has no room, frees what
 * is left; gives the number of whole packets that the port took. */
uint16_t td_tx(uint16_t port, uint16_t queue, struct td_packet *packets, uint16_t count, uint32_t retries);
int td_alloc(void *pool, struct td_packet *packets, uint16_t count);
void td_free(struct td_packet *packets, uint16_t count);
/* Copies the bytes of all segments; gives their number, 0 when they do not fit. */
uint32_t td_copy(const struct td_packet *packet, uint8_t *to, uint32_t room);

/* Has the epoll descriptor become readable with the queue's interrupts from now on, once for each, and
 * when there is a new guest to be asked for them; -1 ends it. -ENOTSUP where there are none. A vhost-user
 * port is to be watched before. */
int td_rx_wait(uint16_t port, uint16_t queue, int epoll);
/* Asks for an interrupt with the next packet, or for no more. One thread at a time for each port, unless
 * it is a vhost-user port. */
int td_rx_interrupt(uint16_t port, uint16_t queue, int on);

/* What is known of the guest of a vhost-user port, kept up by DPDK's own thread. */
struct td_vhost_state {
	uint64_t features; /* negotiated virtio features, with TD_VHOST_GUEST while there is a guest */
	uint64_t tx_queues; /* bit for each queue that the guest takes from */
};
#define TD_VHOST_GUEST (1ull << 63)

/* Has `state` kept up from now on, until the port is removed; it must live as long. */
int td_vhost_watch(uint16_t port, struct td_vhost_state *state);
/* Takes features from what a vhost-user port offers; for guests that come after this. */
int td_vhost_disable(const char *socket, uint64_t features);

#endif
