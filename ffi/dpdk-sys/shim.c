/* Out-of-line forms of DPDK's static inline functions; see shim.h. */
#include <stdio.h>

#include <rte_cycles.h>

#include "shim.h"

uint16_t weir_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count)
{
	return rte_eth_rx_burst(port, queue, packets, count);
}

uint16_t weir_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, packets, count);
}

struct rte_mbuf *weir_mbuf_alloc(struct rte_mempool *pool)
{
	return rte_pktmbuf_alloc(pool);
}

int weir_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **packets, unsigned int count)
{
	return rte_pktmbuf_alloc_bulk(pool, packets, count);
}

void weir_mbuf_free(struct rte_mbuf *packet)
{
	rte_pktmbuf_free(packet);
}

void weir_mbuf_share(struct rte_mbuf *packet)
{
	rte_pktmbuf_refcnt_update(packet, 1);
}

uint16_t weir_mbuf_owners(const struct rte_mbuf *packet)
{
	return rte_mbuf_refcnt_read(packet);
}

int weir_mbuf_linearize(struct rte_mbuf *packet)
{
	return rte_pktmbuf_linearize(packet);
}

int weir_mbuf_chain(struct rte_mbuf *head, struct rte_mbuf *tail)
{
	return rte_pktmbuf_chain(head, tail);
}

unsigned int weir_ring_push_burst(struct rte_ring *ring, struct rte_mbuf **packets, unsigned int count)
{
	return rte_ring_sp_enqueue_burst(ring, (void *const *)packets, count, NULL);
}

unsigned int weir_ring_pop_burst(struct rte_ring *ring, struct rte_mbuf **packets, unsigned int count)
{
	return rte_ring_sc_dequeue_burst(ring, (void **)packets, count, NULL);
}

unsigned int weir_ring_count(const struct rte_ring *ring)
{
	return rte_ring_count(ring);
}

uint64_t weir_tsc(void)
{
	return rte_rdtsc();
}

int weir_errno(void)
{
	return rte_errno;
}

int weir_log_to_stderr(void)
{
	return rte_openlog_stream(stderr);
}

uint32_t weir_lcore_id(void)
{
	return rte_lcore_id();
}
