//! libknet's messages, by a small program of ours (`integration/rivals/knet-messages.c`) that is
//! what an application of it is.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::programs::{Program, Scratch};
use super::{Ends, MESSAGE, What, of_flood, of_ping};
use crate::bench::rivals::Need;
use crate::command::run_command;
use crate::netns::Netns;
use crate::stats::Random;
use crate::topology::Pair;

/// The program's source.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/rivals/knet-messages.c");
/// Of a key, bytes. libknet wants at least 128, and a longer one costs more for each packet.
const KEY_LEN: usize = 256;
/// Port of the link.
const PORT: &str = "25900";

/// What it cannot do without.
pub(super) const NEEDS: [Need; 2] = [
    Need::Debian { proof: "cc", package: "build-essential" },
    Need::Debian { proof: "/usr/include/libknet.h", package: "libknet-dev" },
];

/// The program, built, and a key.
#[derive(Debug)]
pub(super) struct Knet {
    scratch: Scratch,
}

impl Knet {
    /// Builds it.
    ///
    /// # Errors
    /// There is no compiler or no libknet.
    pub(super) fn build() -> Result<Self> {
        let scratch = Scratch::new()?;
        for need in NEEDS {
            need.check()?;
        }
        let mut cc = Command::new("cc");
        run_command(cc.args(["-O2", "-o"]).arg(scratch.path("knet")).args([SOURCE, "-lknet"]))?;
        // Keeps nothing secret: the key lives as long as the run.
        let mut key = [0; KEY_LEN];
        Random::new(std::process::id().into()).fill(&mut key);
        std::fs::write(scratch.path("key"), key)?;
        Ok(Self { scratch })
    }

    /// Round trips, then a flood one way.
    ///
    /// # Errors
    /// The link does not come up, or nothing gets across.
    pub(super) fn messages(
        &self,
        pair: &Pair,
        sealed: bool,
        span: Duration,
    ) -> Result<Vec<(What, f64)>> {
        let start = |netns: &Netns, ends: Ends, work: &str| {
            let mut command = netns.command(self.scratch.path("knet"));
            let (own, other) = (ends.own(pair).to_string(), ends.other(pair).to_string());
            command.args([ends.id(), &own, &other, PORT]);
            let key = self.scratch.path("key");
            command.arg(if sealed { key.as_os_str() } else { "-".as_ref() });
            command.args([work, &MESSAGE.to_string(), &span.as_secs_f64().to_string()]);
            Program::start(&self.scratch, work, &mut command)
        };
        let echo = start(&pair.beta, Ends::Far, "echo")?;
        let mut ping = start(&pair.alpha, Ends::Near, "ping")?;
        ping.wait_up()?;
        let mut values = of_ping(&ping.finish(span)?)?;
        drop(echo);
        let sink = start(&pair.beta, Ends::Far, "sink")?;
        let mut flood = start(&pair.alpha, Ends::Near, "flood")?;
        flood.wait_up()?;
        let sent = flood.finish(span)?;
        values.extend(of_flood(&sent, &sink.finish(span)?)?);
        Ok(values)
    }
}
