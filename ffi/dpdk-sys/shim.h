/*
 * What DPDK offers only as `static inline` functions or as macros that bindgen can't evaluate.
 * The burst functions are called once per burst; nothing here is called per packet on the hot path
 * except weir_mbuf_free, and that only for packets which are dropped one by one.
 */
#ifndef WEIR_SHIM_H
#define WEIR_SHIM_H

#include <stdint.h>

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mbuf_dyn.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_version.h>

uint16_t weir_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count);
uint16_t weir_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count);

struct rte_mbuf *weir_mbuf_alloc(struct rte_mempool *pool);
/* 0 on success; all or nothing */
int weir_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **packets, unsigned int count);
void weir_mbuf_free(struct rte_mbuf *packet);
void weir_mbuf_share(struct rte_mbuf *packet);
uint16_t weir_mbuf_owners(const struct rte_mbuf *packet);
int weir_mbuf_linearize(struct rte_mbuf *packet);
/* 0 on success; joins the tail's segments to the head, which owns them from then on */
int weir_mbuf_chain(struct rte_mbuf *head, struct rte_mbuf *tail);

unsigned int weir_ring_push_burst(struct rte_ring *ring, struct rte_mbuf **packets, unsigned int count);
unsigned int weir_ring_pop_burst(struct rte_ring *ring, struct rte_mbuf **packets, unsigned int count);
unsigned int weir_ring_count(const struct rte_ring *ring);

uint64_t weir_tsc(void);
/* UINT32_MAX (LCORE_ID_ANY) for a thread that DPDK does not know */
uint32_t weir_lcore_id(void);
int weir_errno(void);
int weir_log_to_stderr(void);

#define WEIR_CONSTANT(name) static const uint64_t WEIR_##name = name

WEIR_CONSTANT(RTE_ETH_RX_OFFLOAD_IPV4_CKSUM);
WEIR_CONSTANT(RTE_ETH_RX_OFFLOAD_TCP_CKSUM);
WEIR_CONSTANT(RTE_ETH_RX_OFFLOAD_UDP_CKSUM);
WEIR_CONSTANT(RTE_ETH_RX_OFFLOAD_SCATTER);
WEIR_CONSTANT(RTE_ETH_RX_OFFLOAD_RSS_HASH);
WEIR_CONSTANT(RTE_ETH_TX_OFFLOAD_IPV4_CKSUM);
WEIR_CONSTANT(RTE_ETH_TX_OFFLOAD_TCP_CKSUM);
WEIR_CONSTANT(RTE_ETH_TX_OFFLOAD_UDP_CKSUM);
WEIR_CONSTANT(RTE_ETH_TX_OFFLOAD_MULTI_SEGS);
WEIR_CONSTANT(RTE_ETH_RSS_IP);
WEIR_CONSTANT(RTE_ETH_RSS_TCP);
WEIR_CONSTANT(RTE_ETH_RSS_UDP);
WEIR_CONSTANT(RTE_ETH_MQ_RX_NONE);
WEIR_CONSTANT(RTE_ETH_MQ_RX_RSS);

WEIR_CONSTANT(RTE_MBUF_F_RX_VLAN_STRIPPED);
WEIR_CONSTANT(RTE_MBUF_F_RX_RSS_HASH);
WEIR_CONSTANT(RTE_MBUF_F_RX_IP_CKSUM_MASK);
WEIR_CONSTANT(RTE_MBUF_F_RX_IP_CKSUM_BAD);
WEIR_CONSTANT(RTE_MBUF_F_RX_IP_CKSUM_GOOD);
WEIR_CONSTANT(RTE_MBUF_F_RX_L4_CKSUM_MASK);
WEIR_CONSTANT(RTE_MBUF_F_RX_L4_CKSUM_BAD);
WEIR_CONSTANT(RTE_MBUF_F_RX_L4_CKSUM_GOOD);
WEIR_CONSTANT(RTE_MBUF_F_TX_IPV4);
WEIR_CONSTANT(RTE_MBUF_F_TX_IPV6);
WEIR_CONSTANT(RTE_MBUF_F_TX_IP_CKSUM);
WEIR_CONSTANT(RTE_MBUF_F_TX_TCP_CKSUM);
WEIR_CONSTANT(RTE_MBUF_F_TX_UDP_CKSUM);
WEIR_CONSTANT(RTE_MBUF_F_TX_L4_MASK);

WEIR_CONSTANT(RTE_MBUF_L2_LEN_BITS);
WEIR_CONSTANT(RTE_MBUF_L3_LEN_BITS);
WEIR_CONSTANT(RTE_PKTMBUF_HEADROOM);
WEIR_CONSTANT(RTE_MEMPOOL_CACHE_MAX_SIZE);
WEIR_CONSTANT(RTE_ETH_RETA_GROUP_SIZE);
WEIR_CONSTANT(RING_F_SP_ENQ);
WEIR_CONSTANT(RING_F_SC_DEQ);
WEIR_CONSTANT(RING_F_EXACT_SZ);

#endif
