//! Two hubs and bad links between them, in virtual time.

mod credit;
mod hostile;
mod links;
mod processes;
mod streams;
mod weather;
mod world;
