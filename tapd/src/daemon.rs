//! The daemon.

use crate::config::{Config, Source};
use crate::exit::{Exit, Failure};

/// Runs until a signal ends it.
pub(crate) fn run(_config: Config, _source: Source) -> Result<(), Failure> {
    Err(Failure::message(Exit::Runtime, "not built yet"))
}
