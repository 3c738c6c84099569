//! The sockets of channels with real hubs and programs that the tests play.

mod world;
mod messages;
mod wrong;
mod raw;
mod streams;
mod clients;
