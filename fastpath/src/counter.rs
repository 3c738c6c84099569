//! Counters that one worker writes and the control thread reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count since start, written by one thread only and read by any.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`; only the thread that owns the counter may call this.
    ///
    /// A load and a store instead of a locked add: with a single writer nothing is lost.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Declares a set of documented [`Counter`]s that can be listed by name.
macro_rules! counters {
    ($(#[$doc:meta])* pub struct $set:ident { $($(#[$counter_doc:meta])+ $counter:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $set {
            $($(#[$counter_doc])+ pub $counter: $crate::counter::Counter,)+
        }

        impl $set {
            /// Every counter with its name, in the order of declaration.
            pub fn values(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($counter), self.$counter.get()),)+].into_iter()
            }
        }
    };
}
pub(crate) use counters;
