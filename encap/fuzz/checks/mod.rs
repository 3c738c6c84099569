//! What the fuzz targets check, one function each. They panic on a fault.
//!
//! `tests/corpus.rs` replays the corpus through these same functions, so that a target and its
//! regression test cannot drift apart.

mod channel;
mod formats;
mod hub;
mod pair;
mod script;

// Only a part of what the scenarios use is needed here.
#[allow(dead_code)]
#[path = "../../tests/world/mod.rs"]
mod world;

pub use channel::channel;
pub use formats::{bundle, compressed, control, frame_view, header, hello, long_header};
pub use hub::hub;
pub use script::decapsulate;

/// A checking function: takes any bytes.
pub type Check = fn(&[u8]);

/// Every target: the name of its file and of its corpus folder, and its check.
pub const TARGETS: &[(&str, Check)] = &[
    ("header", header),
    ("long_header", long_header),
    ("frame_view", frame_view),
    ("control", control),
    ("hello", hello),
    ("bundle", bundle),
    ("compressed", compressed),
    ("channel", channel),
    ("hub", hub),
    ("decapsulate", decapsulate),
];
