//! Formats: bytes to checked views and back. Nothing here knows who sent what.

pub mod buf;
pub mod ethernet;
pub mod inner_ip;
pub mod checksum;
pub mod header;
pub mod bundle;
pub mod fragment;
pub mod probe;
pub mod long;
pub mod reader;
pub mod heartbeat;
pub mod control;
pub mod varint;
pub mod channel;
