//! What guests send each other, by the tools of busybox.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::Guest;
use crate::wait;

/// Where a guest that gives a file takes connections.
const PORT: u16 = 8080;

impl Guest {
    /// Sends `count` pings to `to` with `payload` bytes each and insists on every answer.
    ///
    /// # Errors
    /// An answer is missing.
    pub fn ping(&mut self, to: &str, count: u32, payload: u32) -> Result<()> {
        let deadline = Duration::from_secs(u64::from(count) + 20);
        let line = format!("ping -q -c {count} -i 0.2 -W 5 -s {payload} {to}");
        let text = self.run_within(&line, deadline)?;
        ensure!(text.contains(" 0% packet loss"), "from {}: {text}", self.name());
        Ok(())
    }

    /// Pings until there is an answer.
    ///
    /// # Errors
    /// There was none within `deadline`.
    pub fn ping_until_answer(&mut self, to: &str, deadline: Duration) -> Result<()> {
        let line = format!("ping -q -c 1 -W 1 {to}");
        let what = format!("an answer of {to} to guest {}", self.name());
        wait::until(&what, deadline, || {
            self.output(&line, deadline).is_ok_and(|(status, _)| status == 0)
        })
    }

    /// Starts to ping `to` every `interval_ms`, in the background.
    ///
    /// # Errors
    /// The guest takes no commands.
    pub fn start_pinging(&mut self, to: &str, interval_ms: u32) -> Result<()> {
        let interval = f64::from(interval_ms) / 1000.0;
        self.run(&format!("ping -i {interval} {to} >/tmp/ping 2>&1 & echo $! >/tmp/ping.pid"))
            .map(|_| ())
    }

    /// Ends what [`Guest::start_pinging`] began and gives the greatest number of requests in a row
    /// that had no answer, before the last answer that came.
    ///
    /// # Errors
    /// There were fewer than five answers.
    pub fn stop_pinging(&mut self) -> Result<u64> {
        self.run("kill $(cat /tmp/ping.pid)")?;
        let text = self.run("cat /tmp/ping")?;
        longest_gap(&text).with_context(|| format!("in guest {}", self.name()))
    }

    /// Makes a file of `mib` MiB of noise at `/www/NAME` and gives its MD5.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn make_file(&mut self, name: &str, mib: u32) -> Result<String> {
        let line = format!(
            "dd if=/dev/urandom of=/www/{name} bs=1M count={mib} 2>/dev/null && md5sum /www/{name}"
        );
        first_word(&self.run_within(&line, Duration::from_secs(120))?)
    }

    /// Gives `/www/NAME` to whoever connects, from now on.
    ///
    /// # Errors
    /// The guest takes no commands.
    pub fn serve(&mut self, name: &str) -> Result<()> {
        self.run(&format!("(while true; do nc -l -p {PORT} </www/{name}; done) >/dev/null 2>&1 &"))
            .map(|_| ())
    }

    /// Takes what the guest at `from` gives and tells the MD5 of what arrived.
    ///
    /// # Errors
    /// It did not arrive within `deadline`.
    pub fn get_file(&mut self, from: &str, deadline: Duration) -> Result<String> {
        // At the end of its input nc would tell the other one to stop: this one has no end. The
        // other one listens once it has come round to it.
        let line = format!(
            "[ -p /tmp/open ] || mkfifo /tmp/open; for try in $(seq 100); do \
             nc {from} {PORT} <>/tmp/open 2>/dev/null && break; sleep 0.1; done | md5sum"
        );
        first_word(&self.run_within(&line, deadline)?)
    }

    /// Gives out addresses from `first` to `last` (of a /24) on card `card`.
    ///
    /// # Errors
    /// The server does not start.
    pub fn serve_dhcp(&mut self, card: usize, first: &str, last: &str) -> Result<()> {
        self.run(&format!(
            "printf 'start {first}\\nend {last}\\ninterface eth{card}\\noption subnet \
             255.255.255.0\\nlease_file /tmp/leases\\n' >/tmp/udhcpd.conf && : >/tmp/leases && \
             udhcpd /tmp/udhcpd.conf"
        ))
        .map(|_| ())
    }

    /// Asks for an address on card `card` and gives it.
    ///
    /// # Errors
    /// Nobody gave one.
    pub fn ask_dhcp(&mut self, card: usize) -> Result<String> {
        self.run(&format!("ip addr flush dev eth{card}; ip link set eth{card} up"))?;
        let ask = format!("udhcpc -i eth{card} -n -q -t 10 -T 2 -s /etc/udhcpc");
        self.run_within(&ask, Duration::from_secs(60))?;
        let text = self.run(&format!("ip -4 addr show dev eth{card}"))?;
        let address = text.split("inet ").nth(1).and_then(|rest| rest.split('/').next());
        Ok(address.ok_or_else(|| anyhow!("no address in {text}"))?.to_owned())
    }
}

fn first_word(text: &str) -> Result<String> {
    Ok(text.split_whitespace().next().ok_or_else(|| anyhow!("no checksum"))?.to_owned())
}

/// From the lines of busybox's ping: `64 bytes from 10.0.0.2: seq=17 ttl=64 time=0.9 ms`.
fn longest_gap(text: &str) -> Result<u64> {
    let answered: BTreeSet<u64> = text
        .lines()
        .filter_map(|line| line.split_once(" seq=")?.1.split(' ').next()?.parse().ok())
        .collect();
    ensure!(answered.len() >= 5, "only {} answers:\n{text}", answered.len());
    let pairs = answered.iter().zip(answered.iter().skip(1));
    Ok(pairs.map(|(before, after)| after - before - 1).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_what_was_not_answered() {
        let line = |seq: u64| format!("64 bytes from 10.0.0.2: seq={seq} ttl=64 time=0.9 ms\n");
        let text: String = [0, 1, 2, 9, 10, 12].into_iter().map(line).collect();
        assert_eq!(longest_gap(&text).unwrap(), 6);
        assert!(longest_gap(&line(1)).is_err());
    }
}
