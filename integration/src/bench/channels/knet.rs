//! libknet's messages, by a small program of ours (`integration/rivals/knet-messages.c`) that is
//! what an application of it is, and by its own bench (`integration/rivals/knet-bench` builds it).

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::programs::{Program, Scratch};
use super::{Ends, MESSAGE, What, of_flood, of_ping};
use crate::bench::rivals::{Need, crate_program};
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
/// Base port of libknet's bench.
const BENCH_PORT: &str = "25930";

/// What it cannot do without.
pub(super) const NEEDS: [Need; 2] = [
    Need::Debian { proof: "cc", package: "build-essential" },
    Need::Debian { proof: "/usr/include/libknet.h", package: "libknet-dev" },
];
/// What its own bench cannot do without. curl comes first: the script fetches with it.
pub(super) const BENCH_NEEDS: [Need; 2] = [
    Need::Debian { proof: "curl", package: "curl" },
    Need::Script {
        program: "knet_bench",
        script: concat!(env!("CARGO_MANIFEST_DIR"), "/rivals/knet-bench"),
    },
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

    /// What libknet's own bench says of a flood one way. Its key has 4096 bytes.
    ///
    /// # Errors
    /// It is not built, or the link does not come up.
    pub(super) fn bench(
        &self,
        pair: &Pair,
        sealed: bool,
        span: Duration,
    ) -> Result<Vec<(What, f64)>> {
        for need in BENCH_NEEDS {
            need.check()?;
        }
        let program = crate_program("knet_bench")?;
        let start = |netns: &Netns, ends: Ends| {
            let mut command = netns.command(&program);
            let node = |ends: Ends| format!("{},{}", ends.id(), ends.own(pair));
            command.args(["-n", &node(Ends::Near), "-n", &node(Ends::Far), "-t", ends.id()]);
            command.args(["-s", Ends::Near.id(), "-b", BENCH_PORT, "-T", "perf-by-time"]);
            command.args(["-S", &span.as_secs().max(1).to_string(), "-x", &MESSAGE.to_string()]);
            if sealed {
                command.args(["-c", "openssl:aes256:sha256"]);
            }
            Program::start(&self.scratch, &format!("bench{}", ends.id()), &mut command)
        };
        let receiver = start(&pair.beta, Ends::Far)?;
        let sender = start(&pair.alpha, Ends::Near)?;
        let said = receiver.finish_text(span)?;
        sender.finish_text(span)?;
        let rate = rate_of(&said).with_context(|| format!("no rate in: {said}"))?;
        Ok(vec![(What::OneWay, rate / 1e3)])
    }
}

/// Messages a second in what the receiver of libknet's bench says.
fn rate_of(said: &str) -> Option<f64> {
    let line = said.lines().find(|line| line.contains("pckts/sec"))?;
    let mut words = line.split_whitespace().rev().skip_while(|word| *word != "pckts/sec");
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_found() {
        let said = "[info]: setting up\n[perf] execution time:   1.8735 secs Average speed:   \
                    0.8307 MB/sec 13610.6469 pckts/sec (size: 64 total: 25500)\n";
        assert_eq!(rate_of(said), Some(13_610.646_9));
        assert_eq!(rate_of("nothing"), None);
    }
}
