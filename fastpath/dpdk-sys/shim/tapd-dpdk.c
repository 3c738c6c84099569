/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <rte_alarm.h>
#include <rte_common.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_vhost.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_version.h>
#include <rte_vhost.h>

#include "tapd-dpdk.h"

#define BURST 64

static td_log_fn log_to;

uint32_t td_abi(void)
{
	return TD_ABI;
}

const char *td_version(void)
{
	return rte_version();
}

static ssize_t log_write(void *cookie, const char *text, size_t len)
{
	int level = rte_log_cur_msg_loglevel();

	(void)cookie;
	if (log_to != NULL)
		log_to(level < 0 ? RTE_LOG_INFO : (uint32_t)level, text, len);
	return (ssize_t)len;
}

int td_log_to(td_log_fn log)
{
	cookie_io_functions_t functions = { .write = log_write };
	FILE *stream;

	log_to = log;
	stream = fopencookie(NULL, "w", functions);
	if (stream == NULL)
		return -ENOMEM;
	/* A line at a time, or parts of lines of several threads would mix. */
	setvbuf(stream, NULL, _IOLBF, 1024);
	return rte_openlog_stream(stream) == 0 ? 0 : -EINVAL;
}

int td_eal_init(int argc, char **argv)
{
	int result = rte_eal_init(argc, argv);

	return result < 0 ? -(rte_errno != 0 ? rte_errno : EINVAL) : 0;
}

int td_thread_register(void)
{
	if (rte_lcore_id() != LCORE_ID_ANY)
		return 0;
	return rte_thread_register() < 0 ? -rte_errno : 0;
}

void td_thread_unregister(void)
{
	rte_thread_unregister();
}

int td_pool_new(const char *name, uint32_t count, uint32_t cache, uint16_t room, void **pool)
{
	struct rte_mempool *made =
		rte_pktmbuf_pool_create(name, count, cache, 0, room + RTE_PKTMBUF_HEADROOM, SOCKET_ID_ANY);

	if (made == NULL)
		return -(rte_errno != 0 ? rte_errno : ENOMEM);
	*pool = made;
	return 0;
}

void td_pool_free(void *pool)
{
	rte_mempool_free(pool);
}

uint32_t td_pool_in_use(const void *pool)
{
	return rte_mempool_in_use_count(pool);
}

int td_port_add(const char *device, const char *args, uint16_t *port)
{
	char whole[2048];
	int result, len;

	len = snprintf(whole, sizeof(whole), "%s%s%s", device, args[0] != 0 ? "," : "", args);
	if (len < 0 || (size_t)len >= sizeof(whole))
		return -ENAMETOOLONG;
	/* A PCI device that was there at start is probed already. */
	if (rte_eth_dev_get_port_by_name(device, port) == 0)
		return 0;
	result = rte_dev_probe(whole);
	if (result < 0)
		return result;
	return rte_eth_dev_get_port_by_name(device, port);
}

static int vhost_changed(uint16_t port, enum rte_eth_event_type type, void *argument, void *unused);
static void forget_kicks(uint16_t port);

/* Callbacks outlive their port: the next one of the same number would write to what is gone. */
static void forget_callbacks(uint16_t port, enum rte_eth_event_type type)
{
	/* One that is being called cannot be taken away. */
	while (rte_eth_dev_callback_unregister(port, type, vhost_changed, (void *)-1) == -EAGAIN)
		usleep(100);
}

static void close_port(uint16_t port)
{
	rte_eth_dev_stop(port);
	rte_eth_dev_close(port);
}

struct closing {
	uint16_t port;
	sem_t done;
};

static void close_on_alarm(void *argument)
{
	struct closing *closing = argument;

	close_port(closing->port);
	sem_post(&closing->done);
}

/* memif hears on DPDK's interrupt thread that the other end has gone, and frees what closing frees too,
 * without a lock: both have to happen on one thread. */
static void close_between_interrupts(uint16_t port)
{
	struct closing closing = { .port = port };

	sem_init(&closing.done, 0, 0);
	if (rte_eal_alarm_set(1, close_on_alarm, &closing) == 0) {
		while (sem_wait(&closing.done) != 0)
			;
	} else {
		close_port(port);
	}
	sem_destroy(&closing.done);
}

int td_port_remove(uint16_t port)
{
	struct rte_eth_dev_info info;
	int result;

	forget_callbacks(port, RTE_ETH_EVENT_QUEUE_STATE);
	forget_callbacks(port, RTE_ETH_EVENT_INTR_LSC);
	result = rte_eth_dev_info_get(port, &info);
	if (result < 0)
		return result;
	if (info.driver_name != NULL && strcmp(info.driver_name, "net_memif") == 0)
		close_between_interrupts(port);
	else
		close_port(port);
	forget_kicks(port);
	return info.device != NULL ? rte_dev_remove(info.device) : 0;
}

static const struct {
	uint32_t capability;
	uint64_t rx, tx;
} offloads[] = {
	{ TD_CAP_RX_L4_SUM, RTE_ETH_RX_OFFLOAD_UDP_CKSUM | RTE_ETH_RX_OFFLOAD_TCP_CKSUM, 0 },
	{ TD_CAP_RX_IP_SUM, RTE_ETH_RX_OFFLOAD_IPV4_CKSUM, 0 },
	{ TD_CAP_RX_SCATTER, RTE_ETH_RX_OFFLOAD_SCATTER, 0 },
	{ TD_CAP_RX_LRO, RTE_ETH_RX_OFFLOAD_TCP_LRO, 0 },
	{ TD_CAP_TX_TCP_SUM, 0, RTE_ETH_TX_OFFLOAD_TCP_CKSUM },
	{ TD_CAP_TX_UDP_SUM, 0, RTE_ETH_TX_OFFLOAD_UDP_CKSUM },
	{ TD_CAP_TX_IP_SUM, 0, RTE_ETH_TX_OFFLOAD_IPV4_CKSUM },
	{ TD_CAP_TX_TCP_SEG, 0, RTE_ETH_TX_OFFLOAD_TCP_TSO },
	{ TD_CAP_TX_MULTI, 0, RTE_ETH_TX_OFFLOAD_MULTI_SEGS },
};

static uint32_t capabilities(const struct rte_eth_dev_info *info)
{
	uint32_t all = 0;
	size_t i;

	for (i = 0; i < RTE_DIM(offloads); i++) {
		bool rx = (info->rx_offload_capa & offloads[i].rx) == offloads[i].rx;
		bool tx = (info->tx_offload_capa & offloads[i].tx) == offloads[i].tx;

		if (rx && tx)
			all |= offloads[i].capability;
	}
	return all;
}

int td_port_info(uint16_t port, struct td_port_info *out)
{
	struct rte_eth_dev_info info;
	struct rte_ether_addr mac;
	uint16_t mtu = 0;
	int result = rte_eth_dev_info_get(port, &info);

	if (result < 0)
		return result;
	memset(out, 0, sizeof(*out));
	snprintf(out->driver, sizeof(out->driver), "%s", info.driver_name != NULL ? info.driver_name : "?");
	result = rte_eth_macaddr_get(port, &mac);
	if (result < 0)
		return result;
	memcpy(out->mac, mac.addr_bytes, sizeof(out->mac));
	rte_eth_dev_get_mtu(port, &mtu);
	out->max_rx_queues = info.max_rx_queues;
	out->max_tx_queues = info.max_tx_queues;
	out->min_mtu = info.min_mtu;
	out->max_mtu = info.max_mtu;
	out->mtu = mtu;
	out->max_frame_len = info.max_rx_pktlen;
	out->capabilities = capabilities(&info);
	out->numa_node = rte_eth_dev_socket_id(port);
	out->if_index = info.if_index;
	return 0;
}

static int start(uint16_t port, const struct rte_eth_dev_info *info, struct td_port_config *config, bool interrupts)
{
	struct rte_eth_conf conf;
	uint16_t rx = config->rx_descriptors, tx = config->tx_descriptors, queue;
	size_t i;
	int result;

	memset(&conf, 0, sizeof(conf));
	for (i = 0; i < RTE_DIM(offloads); i++) {
		if (config->capabilities & offloads[i].capability) {
			conf.rxmode.offloads |= offloads[i].rx;
			conf.txmode.offloads |= offloads[i].tx;
		}
	}
	if (config->mtu != 0)
		conf.rxmode.mtu = config->mtu;
	if (config->rx_queues > 1 && info->flow_type_rss_offloads != 0) {
		conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		conf.rx_adv_conf.rss_conf.rss_hf =
			info->flow_type_rss_offloads & (RTE_ETH_RSS_IP | RTE_ETH_RSS_UDP);
	}
	conf.intr_conf.rxq = interrupts;
	conf.intr_conf.lsc = info->dev_flags != NULL && (*info->dev_flags & RTE_ETH_DEV_INTR_LSC) != 0;
	result = rte_eth_dev_configure(port, config->rx_queues, config->tx_queues, &conf);
	if (result < 0)
		return result;
	result = rte_eth_dev_adjust_nb_rx_tx_desc(port, &rx, &tx);
	if (result < 0)
		return result;
	for (queue = 0; queue < config->rx_queues; queue++) {
		struct rte_eth_rxconf rxconf = info->default_rxconf;

		rxconf.offloads = conf.rxmode.offloads;
		result = rte_eth_rx_queue_setup(port, queue, rx, rte_eth_dev_socket_id(port), &rxconf, config->pool);
		if (result < 0)
			return result;
	}
	for (queue = 0; queue < config->tx_queues; queue++) {
		struct rte_eth_txconf txconf = info->default_txconf;

		txconf.offloads = conf.txmode.offloads;
		result = rte_eth_tx_queue_setup(port, queue, tx, rte_eth_dev_socket_id(port), &txconf);
		if (result < 0)
			return result;
	}
	result = rte_eth_dev_start(port);
	if (result < 0)
		return result;
	config->rx_descriptors = rx;
	config->tx_descriptors = tx;
	return 0;
}

/* Whether the driver is to be asked for interrupts. */
static bool asks_driver(const struct rte_eth_dev_info *info)
{
	if (info->driver_name == NULL)
		return false;
	/* Those of vhost-user ports are watched here, see below. A card with one interrupt for everything
	 * would lose that of its link. */
	return strcmp(info->driver_name, "net_vhost") != 0 && strcmp(info->driver_name, "net_e1000_em") != 0;
}

int td_port_start(uint16_t port, struct td_port_config *config)
{
	struct rte_eth_dev_info info;
	bool interrupts;
	int result = rte_eth_dev_info_get(port, &info);

	if (result < 0)
		return result;
	if (config->rx_queues > info.max_rx_queues || config->tx_queues > info.max_tx_queues)
		return -E2BIG;
	config->capabilities &= capabilities(&info);
	interrupts = config->rx_interrupts != 0 && asks_driver(&info);
	result = start(port, &info, config, interrupts);
	/* Not every driver, and not every machine, has interrupts: polling always works. */
	if (result < 0 && interrupts) {
		config->rx_interrupts = 0;
		result = start(port, &info, config, false);
	}
	if (result < 0)
		return result;
	rte_eth_dev_get_mtu(port, &config->mtu);
	return 0;
}

int td_port_stop(uint16_t port)
{
	return rte_eth_dev_stop(port);
}

int td_port_stats(uint16_t port, struct td_stats *out)
{
	struct rte_eth_stats stats;
	int result = rte_eth_stats_get(port, &stats);

	if (result < 0)
		return result;
	out->rx_packets = stats.ipackets;
	out->tx_packets = stats.opackets;
	out->rx_bytes = stats.ibytes;
	out->tx_bytes = stats.obytes;
	out->rx_missed = stats.imissed;
	out->rx_errors = stats.ierrors;
	out->tx_errors = stats.oerrors;
	out->rx_no_mbuf = stats.rx_nombuf;
	return 0;
}

int td_port_link(uint16_t port, struct td_link *out)
{
	struct rte_eth_link link;
	int result = rte_eth_link_get_nowait(port, &link);

	if (result < 0)
		return result;
	memset(out, 0, sizeof(*out));
	out->speed_mbps = link.link_speed;
	out->up = link.link_status == RTE_ETH_LINK_UP;
	out->full_duplex = link.link_duplex == RTE_ETH_LINK_FULL_DUPLEX;
	return 0;
}

int td_port_set_mac(uint16_t port, const uint8_t *mac)
{
	struct rte_ether_addr address;

	memcpy(address.addr_bytes, mac, sizeof(address.addr_bytes));
	return rte_eth_dev_default_mac_addr_set(port, &address);
}

int td_port_promiscuous(uint16_t port, int on)
{
	return on ? rte_eth_promiscuous_enable(port) : rte_eth_promiscuous_disable(port);
}

int td_port_all_multicast(uint16_t port, int on)
{
	return on ? rte_eth_allmulticast_enable(port) : rte_eth_allmulticast_disable(port);
}

static inline uint32_t rx_flags(uint64_t flags)
{
	uint64_t l4 = flags & RTE_MBUF_F_RX_L4_CKSUM_MASK, ip = flags & RTE_MBUF_F_RX_IP_CKSUM_MASK;
	uint32_t out = 0;

	if (likely((flags & (RTE_MBUF_F_RX_L4_CKSUM_MASK | RTE_MBUF_F_RX_IP_CKSUM_MASK | RTE_MBUF_F_RX_LRO)) == 0))
		return 0;
	if (l4 == RTE_MBUF_F_RX_L4_CKSUM_NONE)
		out |= TD_RX_L4_PARTIAL;
	else if (l4 == RTE_MBUF_F_RX_L4_CKSUM_GOOD)
		out |= TD_RX_L4_GOOD;
	else if (l4 == RTE_MBUF_F_RX_L4_CKSUM_BAD)
		out |= TD_RX_L4_BAD;
	if (ip == RTE_MBUF_F_RX_IP_CKSUM_GOOD)
		out |= TD_RX_IP_GOOD;
	else if (ip == RTE_MBUF_F_RX_IP_CKSUM_BAD)
		out |= TD_RX_IP_BAD;
	if (flags & RTE_MBUF_F_RX_LRO)
		out |= TD_RX_SUPER;
	return out;
}

uint16_t td_rx(uint16_t port, uint16_t queue, struct td_packet *packets, uint16_t count)
{
	struct rte_mbuf *mbufs[BURST];
	uint16_t got, i;

	got = rte_eth_rx_burst(port, queue, mbufs, RTE_MIN(count, BURST));
	for (i = 0; i < got; i++) {
		struct rte_mbuf *m = mbufs[i];
		struct td_packet *p = &packets[i];

		if (i + 1 < got)
			rte_prefetch0(rte_pktmbuf_mtod(mbufs[i + 1], void *));
		p->mbuf = m;
		p->data = rte_pktmbuf_mtod(m, uint8_t *);
		p->len = m->data_len;
		p->total = m->pkt_len;
		p->room = 0;
		p->flags = rx_flags(m->ol_flags);
		p->segments = m->nb_segs;
		p->segment_size = p->flags & TD_RX_SUPER ? m->tso_segsz : 0;
	}
	return got;
}

static inline void prepare(struct rte_mbuf *m, const struct td_packet *p)
{
	uint64_t flags = 0;

	m->data_len = (uint16_t)p->len;
	m->pkt_len = p->len;
	if (likely((p->flags & ~TD_TX_MORE) == 0))
		return;
	if (p->flags & TD_TX_IPV4)
		flags |= RTE_MBUF_F_TX_IPV4;
	if (p->flags & TD_TX_IPV6)
		flags |= RTE_MBUF_F_TX_IPV6;
	if (p->flags & TD_TX_TCP_SUM)
		flags |= RTE_MBUF_F_TX_TCP_CKSUM;
	if (p->flags & TD_TX_UDP_SUM)
		flags |= RTE_MBUF_F_TX_UDP_CKSUM;
	if (p->flags & TD_TX_TCP_SEG) {
		flags |= RTE_MBUF_F_TX_TCP_SEG;
		m->tso_segsz = p->segment_size;
		m->l4_len = p->l4_len;
	}
	m->l2_len = p->l2_len;
	m->l3_len = p->l3_len;
	m->ol_flags |= flags;
}

uint16_t td_tx(uint16_t port, uint16_t queue, struct td_packet *packets, uint16_t count, uint32_t retries)
{
	struct rte_mbuf *mbufs[BURST];
	uint16_t at = 0, taken = 0;

	while (at < count) {
		uint16_t n = 0, sent = 0;

		while (n < BURST && at < count) {
			struct rte_mbuf *m = packets[at].mbuf, *last = m;

			prepare(m, &packets[at]);
			while (packets[at].flags & TD_TX_MORE && at + 1 < count) {
				struct rte_mbuf *next = packets[++at].mbuf;

				next->data_len = (uint16_t)packets[at].len;
				next->pkt_len = next->data_len;
				last->next = next;
				last = next;
				m->nb_segs++;
				m->pkt_len += next->data_len;
			}
			at++;
			mbufs[n++] = m;
		}
		for (;;) {
			sent += rte_eth_tx_burst(port, queue, mbufs + sent, n - sent);
			if (sent == n || retries == 0)
				break;
			retries--;
			rte_pause();
		}
		taken += sent;
		if (sent < n)
			rte_pktmbuf_free_bulk(mbufs + sent, n - sent);
	}
	return taken;
}

int td_alloc(void *pool, struct td_packet *packets, uint16_t count)
{
	struct rte_mbuf *mbufs[BURST];
	uint16_t done, i;
	int result;

	for (done = 0; done < count; done += i) {
		uint16_t n = RTE_MIN(count - done, BURST);

		result = rte_pktmbuf_alloc_bulk(pool, mbufs, n);
		if (result != 0) {
			td_free(packets, done);
			return -ENOBUFS;
		}
		for (i = 0; i < n; i++) {
			struct td_packet *p = &packets[done + i];

			p->mbuf = mbufs[i];
			p->data = rte_pktmbuf_mtod(mbufs[i], uint8_t *);
			p->len = 0;
			p->total = 0;
			p->room = rte_pktmbuf_tailroom(mbufs[i]);
			p->flags = 0;
			p->segments = 1;
		}
	}
	return 0;
}

void td_free(struct td_packet *packets, uint16_t count)
{
	struct rte_mbuf *mbufs[BURST];
	uint16_t i, n = 0;

	for (i = 0; i < count; i++) {
		mbufs[n++] = packets[i].mbuf;
		if (n == BURST || i + 1 == count) {
			rte_pktmbuf_free_bulk(mbufs, n);
			n = 0;
		}
	}
}

uint32_t td_copy(const struct td_packet *packet, uint8_t *to, uint32_t room)
{
	const struct rte_mbuf *m = packet->mbuf;
	uint32_t done = 0;

	if (m->pkt_len > room)
		return 0;
	for (; m != NULL; m = m->next) {
		memcpy(to + done, rte_pktmbuf_mtod(m, const void *), m->data_len);
		done += m->data_len;
	}
	return done;
}

/*
 * Interrupts of vhost-user ports: the guest's kicks. Their descriptors come and go with the guest, and
 * the driver frees its own record of them while others may ask for it. So they are taken where the
 * driver tells of changes: that is called from the library's thread, which cannot go on meanwhile.
 */
#define KICK_QUEUES 64

struct kicks {
	pthread_mutex_t lock; /* of `queues`, and of changes of `vid` */
	int vid;              /* of the guest; -1 without one */
	uint32_t callers;     /* threads that may be using it */
	struct {
		int epoll; /* what becomes readable with a kick; -1 without one */
		int fd;    /* the guest's descriptor, our own copy; -1 without one */
		bool none; /* the guest does not kick, it has to be polled */
	} queues[KICK_QUEUES];
};

static struct kicks *kicks_of[RTE_MAX_ETHPORTS];

/* The library's number of the ring that a guest sends by. */
static uint16_t ring_of(uint16_t queue)
{
	return (uint16_t)(2 * queue + 1);
}

/* With the lock. */
static void drop_kick(struct kicks *kicks, uint16_t queue)
{
	int *fd = &kicks->queues[queue].fd, epoll = kicks->queues[queue].epoll;

	if (*fd >= 0) {
		/* The guest has it too, so that closing alone would leave it there. */
		if (epoll >= 0)
			epoll_ctl(epoll, EPOLL_CTL_DEL, *fd, NULL);
		close(*fd);
		*fd = -1;
	}
}

/* With the lock. */
static int take_kick(struct kicks *kicks, uint16_t queue)
{
	/* Edges, so that nobody has to read the guest's descriptor. It can always be written to: the
	 * first edge comes at once, and has a sleeper ask for kicks of this guest too. */
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT | EPOLLET };
	struct rte_vhost_vring ring;
	int epoll = kicks->queues[queue].epoll, fd;

	drop_kick(kicks, queue);
	kicks->queues[queue].none = false;
	if (epoll < 0 || kicks->vid < 0 || rte_vhost_get_vhost_vring(kicks->vid, ring_of(queue), &ring) < 0)
		return 0;
	if (ring.kickfd < 0) {
		/* -1: the guest says that it has none. Else it has not said anything yet. */
		kicks->queues[queue].none = ring.kickfd == -1;
		return 0;
	}
	fd = fcntl(ring.kickfd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
		kicks->queues[queue].none = true;
		if (fd >= 0)
			close(fd);
		return -EBADF;
	}
	kicks->queues[queue].fd = fd;
	return 0;
}

static void queue_changed(uint16_t port, uint16_t queue, bool enabled)
{
	struct kicks *kicks = kicks_of[port];

	if (kicks == NULL || queue >= KICK_QUEUES)
		return;
	pthread_mutex_lock(&kicks->lock);
	if (enabled)
		take_kick(kicks, queue);
	else
		drop_kick(kicks, queue);
	pthread_mutex_unlock(&kicks->lock);
}

/* With the lock. `vid` is -1 when the guest goes. */
static void guest_changed(struct kicks *kicks, int vid)
{
	uint16_t queue;

	__atomic_store_n(&kicks->vid, vid, __ATOMIC_SEQ_CST);
	for (queue = 0; queue < KICK_QUEUES; queue++) {
		if (vid >= 0)
			take_kick(kicks, queue);
		else
			drop_kick(kicks, queue);
	}
	/* What they use is freed after this. None of the library's locks is held now, so they come to
	 * an end. */
	while (vid < 0 && __atomic_load_n(&kicks->callers, __ATOMIC_SEQ_CST) != 0)
		rte_pause();
}

static int watch_kicks(uint16_t port)
{
	struct kicks *kicks = calloc(1, sizeof(*kicks));
	uint16_t queue;

	if (kicks == NULL)
		return -ENOMEM;
	pthread_mutex_init(&kicks->lock, NULL);
	kicks->vid = -1;
	for (queue = 0; queue < KICK_QUEUES; queue++)
		kicks->queues[queue].epoll = kicks->queues[queue].fd = -1;
	kicks_of[port] = kicks;
	return 0;
}

static void forget_kicks(uint16_t port)
{
	struct kicks *kicks = kicks_of[port];
	uint16_t queue;

	if (kicks == NULL)
		return;
	kicks_of[port] = NULL;
	for (queue = 0; queue < KICK_QUEUES; queue++)
		drop_kick(kicks, queue);
	pthread_mutex_destroy(&kicks->lock);
	free(kicks);
}

static int wait_for_kicks(struct kicks *kicks, uint16_t queue, int epoll)
{
	int result;

	if (queue >= KICK_QUEUES)
		return -ENOTSUP;
	pthread_mutex_lock(&kicks->lock);
	drop_kick(kicks, queue);
	kicks->queues[queue].epoll = epoll;
	result = take_kick(kicks, queue);
	pthread_mutex_unlock(&kicks->lock);
	return result;
}

int td_rx_wait(uint16_t port, uint16_t queue, int epoll)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	int fd;

	if (port >= RTE_MAX_ETHPORTS)
		return -ENODEV;
	if (kicks_of[port] != NULL)
		return wait_for_kicks(kicks_of[port], queue, epoll);
	if (epoll < 0)
		return 0;
	/* Asked first: drivers without interrupts say so here without a word in the log. */
	if (rte_eth_dev_rx_intr_enable(port, queue) != 0)
		return -ENOTSUP;
	rte_eth_dev_rx_intr_disable(port, queue);
	fd = rte_eth_dev_rx_intr_ctl_q_get_fd(port, queue);
	if (fd < 0)
		return -ENOTSUP;
	return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

static int switch_kicks(struct kicks *kicks, uint16_t queue, int on)
{
	int result = 0, vid;

	if (queue >= KICK_QUEUES)
		return -ENOTSUP;
	__atomic_fetch_add(&kicks->callers, 1, __ATOMIC_SEQ_CST);
	vid = __atomic_load_n(&kicks->vid, __ATOMIC_SEQ_CST);
	if (on && __atomic_load_n(&kicks->queues[queue].none, __ATOMIC_RELAXED))
		result = -ENOTSUP;
	/* Without a guest, or while it has not this queue yet, nothing comes; see take_kick. */
	else if (vid >= 0)
		rte_vhost_enable_guest_notification(vid, ring_of(queue), on);
	__atomic_fetch_sub(&kicks->callers, 1, __ATOMIC_SEQ_CST);
	return result;
}

int td_rx_interrupt(uint16_t port, uint16_t queue, int on)
{
	int result;

	if (port >= RTE_MAX_ETHPORTS)
		return -ENODEV;
	if (kicks_of[port] != NULL)
		result = switch_kicks(kicks_of[port], queue, on);
	else if (on)
		result = rte_eth_dev_rx_intr_enable(port, queue);
	else
		result = rte_eth_dev_rx_intr_disable(port, queue);
	/* What is read of the ring after this is newer than what was asked for: without it, a packet that
	 * comes just now could be missed by both. */
	rte_mb();
	return result;
}

static int vhost_changed(uint16_t port, enum rte_eth_event_type type, void *argument, void *unused)
{
	struct td_vhost_state *state = argument;
	struct rte_eth_vhost_queue_event event;
	struct rte_eth_link link;
	uint64_t features = 0;
	int vid = -1;

	(void)unused;
	if (type == RTE_ETH_EVENT_INTR_LSC) {
		struct kicks *kicks = kicks_of[port];

		/* Called from where the guest comes and goes, so that it cannot go meanwhile; or for the
		 * first time, when the lock keeps it. */
		pthread_mutex_lock(&kicks->lock);
		if (rte_eth_link_get_nowait(port, &link) == 0 && link.link_status == RTE_ETH_LINK_UP) {
			vid = rte_eth_vhost_get_vid_from_port_id(port);
			if (vid >= 0 && rte_vhost_get_negotiated_features(vid, &features) == 0)
				features |= TD_VHOST_GUEST;
		} else {
			/* The library forgets its queues without a word. */
			__atomic_store_n(&state->tx_queues, 0, __ATOMIC_RELAXED);
		}
		guest_changed(kicks, features & TD_VHOST_GUEST ? vid : -1);
		__atomic_store_n(&state->features, features, __ATOMIC_RELEASE);
		pthread_mutex_unlock(&kicks->lock);
		return 0;
	}
	while (rte_eth_vhost_get_queue_event(port, &event) == 0) {
		uint64_t bit = event.queue_id < 64 ? 1ull << event.queue_id : 0;

		if (event.rx) {
			queue_changed(port, event.queue_id, event.enable);
			continue;
		}
		if (event.enable)
			__atomic_fetch_or(&state->tx_queues, bit, __ATOMIC_RELAXED);
		else
			__atomic_fetch_and(&state->tx_queues, ~bit, __ATOMIC_RELAXED);
	}
	return 0;
}

int td_vhost_watch(uint16_t port, struct td_vhost_state *state)
{
	int result = watch_kicks(port);

	if (result == 0)
		result = rte_eth_dev_callback_register(port, RTE_ETH_EVENT_QUEUE_STATE, vhost_changed, state);
	if (result == 0)
		result = rte_eth_dev_callback_register(port, RTE_ETH_EVENT_INTR_LSC, vhost_changed, state);
	if (result != 0)
		return result;
	/* What happened before. */
	vhost_changed(port, RTE_ETH_EVENT_QUEUE_STATE, state, NULL);
	vhost_changed(port, RTE_ETH_EVENT_INTR_LSC, state, NULL);
	return 0;
}

int td_vhost_disable(const char *socket, uint64_t features)
{
	return rte_vhost_driver_disable_features(socket, features) == 0 ? 0 : -EINVAL;
}

/* The declarations on the other side assume these. */
_Static_assert(sizeof(struct td_packet) == 48, "td_packet");
_Static_assert(sizeof(struct td_port_info) == 64, "td_port_info");
_Static_assert(sizeof(struct td_port_config) == 24, "td_port_config");
_Static_assert(sizeof(struct td_stats) == 64, "td_stats");
_Static_assert(sizeof(struct td_link) == 8, "td_link");
_Static_assert(sizeof(struct td_vhost_state) == 16, "td_vhost_state");
