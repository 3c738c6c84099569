//! Raw channels as programs on this node see them: records on UNIX sockets.
//!
//! [`framing`] is the form of the records and [`pieces`] how a long message is cut into several;
//! [`client`] is what a program uses.

pub mod framing;
pub mod pieces;
pub mod client;
