//! Privileges: everything but `CAP_NET_ADMIN` is given up.
//!
//! `CAP_NET_ADMIN` stays, because networks come and go while the daemon runs and each needs a tap.

use anyhow::{Context, bail};
use caps::{CapSet, Capability, CapsHashSet};

/// Gives up every capability but `CAP_NET_ADMIN`, for the calling thread and those it starts later.
///
/// Capabilities belong to threads: call this before the first thread is started. Files that only
/// `CAP_DAC_OVERRIDE` opens (another user's key file) must have been read before.
///
/// # Errors
/// When `CAP_NET_ADMIN` is missing, with what to do about it, or when the kernel refuses.
pub(crate) fn drop_all_but_net_admin() -> anyhow::Result<()> {
    let permitted = caps::read(None, CapSet::Permitted).context("cannot read the capabilities")?;
    if !permitted.contains(&Capability::CAP_NET_ADMIN) {
        bail!(
            "CAP_NET_ADMIN is missing, and taps cannot be made without it; start tapd as root, \
             with AmbientCapabilities=CAP_NET_ADMIN in its systemd unit, or with \
             --cap-add NET_ADMIN in its container"
        );
    }
    let kept = CapsHashSet::from([Capability::CAP_NET_ADMIN]);
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient).context("cannot clear the ambient capabilities")?;
    }
    // Dropping from the bounding set itself needs CAP_SETPCAP. Without it nothing can be regained
    // by this process anyway, short of executing a file that carries capabilities.
    if permitted.contains(&Capability::CAP_SETPCAP) {
        caps::set(None, CapSet::Effective, &permitted).context("cannot raise CAP_SETPCAP")?;
        let bounding =
            caps::read(None, CapSet::Bounding).context("cannot read the bounding set")?;
        for capability in bounding.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability)
                .with_context(|| format!("cannot drop {capability} from the bounding set"))?;
        }
    }
    caps::clear(None, CapSet::Inheritable).context("cannot clear the inheritable set")?;
    caps::set(None, CapSet::Effective, &kept).context("cannot lower the effective set")?;
    caps::set(None, CapSet::Permitted, &kept).context("cannot lower the permitted set")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs on a thread of its own, so that the other tests keep what they have.
    #[test]
    fn only_net_admin_is_left_or_its_lack_is_named() {
        let outcome = std::thread::spawn(|| {
            let had = caps::has_cap(None, CapSet::Permitted, Capability::CAP_NET_ADMIN).unwrap();
            let result = drop_all_but_net_admin();
            let left = [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable]
                .map(|set| caps::read(None, set).unwrap());
            (had, result.map_err(|error| error.to_string()), left)
        });
        let (had, result, [effective, permitted, inheritable]) = outcome.join().unwrap();
        if had {
            assert_eq!(result, Ok(()));
            let kept = CapsHashSet::from([Capability::CAP_NET_ADMIN]);
            assert_eq!(effective, kept);
            assert_eq!(permitted, kept);
            assert!(inheritable.is_empty());
        } else {
            assert!(result.unwrap_err().contains("CAP_NET_ADMIN is missing"));
        }
    }
}
