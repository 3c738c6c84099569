//! Who gets a frame, over which link, and what is done about one that does not fit.

pub mod fdb;
pub mod policy;
pub mod marks;
pub mod protect;
pub mod mss;
pub mod too_big;
pub mod policer;
pub mod filter;
pub mod loop_probe;
pub mod address_filter;
