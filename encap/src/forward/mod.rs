//! Who gets a frame.

pub mod fdb;
pub mod policer;
pub mod filter;
