//! Raw channels as programs on this node see them: records on UNIX sockets.
//!
//! [`framing`] is the form of the records and [`pieces`] how a long message is cut into several;
//! [`client`] is what a program uses, and [`sockets`] the daemon's side.

pub mod framing;
pub mod pieces;
pub mod client;
pub mod sockets;
mod connection;
mod inbound;
mod stream;
mod entry;
mod news;
mod port;
mod batch;
mod system;
mod report;
#[cfg(test)]
mod tests;
