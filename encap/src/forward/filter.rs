//! Link-constrained group addresses, 01-80-C2-00-00-00 to -0F, which bridges do not forward.
//!
//! tapd passes spanning tree by default, so that a loop through two taps is found by the bridges
//! around it, and drops what is meant for the next hop only: pause, LACP, LLDP, 802.1X.

use crate::wire::ethernet::{EtherType, EthernetView, MacAddr};

/// Group address of STP, RSTP and MSTP (IEEE 802.1Q table 8-1).
const STP: MacAddr = MacAddr([0x01, 0x80, 0xc2, 0x00, 0x00, 0x00]);
/// Group address of spanning tree among provider bridges.
const PROVIDER_STP: MacAddr = MacAddr([0x01, 0x80, 0xc2, 0x00, 0x00, 0x08]);

/// Whether the frame may cross the overlay.
#[must_use]
pub fn passes(frame: &EthernetView<'_>, stp: bool) -> bool {
    let to = frame.destination();
    if frame.ether_type() == EtherType::MAC_CONTROL {
        return false;
    }
    !to.is_link_local() || stp && (to == STP || to == PROVIDER_STP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(destination: [u8; 6], ether_type: u16, stp: bool) -> bool {
        let mut bytes = destination.to_vec();
        bytes.extend([2, 0, 0, 0, 0, 1]);
        bytes.extend(ether_type.to_be_bytes());
        passes(&EthernetView::new(&bytes).unwrap(), stp)
    }

    #[test]
    fn stp_passes_by_choice_and_next_hop_protocols_never() {
        assert!(allowed([1, 0x80, 0xc2, 0, 0, 0], 0x0026, true));
        assert!(!allowed([1, 0x80, 0xc2, 0, 0, 0], 0x0026, false));
        for last in [1, 2, 3, 0x0e, 0x0f] {
            assert!(!allowed([1, 0x80, 0xc2, 0, 0, last], 0x8809, true), "{last:x}");
        }
        assert!(allowed([1, 0x80, 0xc2, 0, 0, 0x10], 0x0800, true));
        assert!(allowed([0xff; 6], 0x0806, false));
        assert!(!allowed([2, 0, 0, 0, 0, 9], 0x8808, true), "unicast pause");
    }
}
