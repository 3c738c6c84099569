//! What the neighbour machine counts.

use crate::counter::counters;

counters! {
    /// What the neighbour machine has seen. Written by whoever holds its lock.
    pub struct NeighborCounters {
        /// Requests received, for any address.
        rx_requests,
        /// Answers and announcements received.
        rx_answers,
        /// Frames dropped: they break the rules of ARP or neighbour discovery.
        rx_dropped_malformed,
        /// Frames dropped: neither ARP nor neighbour discovery that a host with a configured address
        /// takes notice of.
        rx_dropped_other,
        /// Frames dropped: our own came back.
        rx_dropped_own,
        /// Requests dropped: for another address, by one who is no neighbour of ours.
        rx_dropped_not_ours,
        /// Answers dropped: nobody asked, and the address is of no interest.
        rx_dropped_unsolicited,
        /// Requests for our address dropped: too many per second.
        rx_dropped_rate_limited,
        /// Claims to the address of a neighbour that seems to have it still.
        spoof_suspected,
        /// Claims to the address of a neighbour dropped: too many per second that would have moved one, or
        /// had it asked.
        claims_dropped_rate_limited,
        /// Claims to the address of a static neighbour.
        static_contradicted,
        /// Frames of others that use our address.
        address_conflicts,
        /// Requests sent.
        tx_requests,
        /// Requests answered.
        tx_replies,
        /// Announcements of our address sent.
        tx_announcements,
        /// Multicast listener reports sent, by which switches learn that we listen (RFC 3810).
        tx_memberships,
        /// Probes for our address sent.
        tx_probes,
        /// Frames dropped: nobody fetched those before them.
        tx_dropped_queue_full,
        /// Events dropped: nobody fetched those before them.
        events_dropped,
        /// Neighbours whose MAC address was found.
        neighbors_found,
        /// Neighbours that moved to another MAC address.
        neighbors_moved,
        /// Neighbours that did not answer.
        neighbors_failed,
        /// Neighbours that were forgotten to make room.
        neighbors_evicted,
        /// Neighbours that were not taken in, since all that are known are in use.
        neighbors_dropped_table_full,
        /// Datagrams that waited for a neighbour.
        held,
        /// Datagrams that were sent after waiting.
        held_released,
        /// Datagrams dropped: their neighbour did not answer.
        held_dropped_failed,
        /// Questions for addresses that no route leads to.
        no_route,
    }
}
