//! Ordinary programs as traffic: ping and iperf3.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::command::{Running, output_of};
use crate::netns::Netns;
use crate::wait;

/// The port on which our iperf3 servers listen.
const IPERF_PORT: u16 = 5201;

/// What ping counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingReport {
    /// Requests.
    pub sent: u64,
    /// Requests that were answered.
    pub received: u64,
}

impl PingReport {
    fn parse(output: &str) -> Result<Self> {
        // "3 packets transmitted, 3 received, 0% packet loss, time 401ms"
        let line = output
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .ok_or_else(|| anyhow!("ping did not count:\n{output}"))?;
        let number = |word: &str| {
            line.split(", ")
                .find(|part| part.contains(word))
                .and_then(|part| part.split(' ').next()?.parse().ok())
                .ok_or_else(|| anyhow!("no count of {word} in: {line}"))
        };
        Ok(Self { sent: number("transmitted")?, received: number("received")? })
    }
}

/// Sends `count` pings 10 ms apart with `payload` bytes each, and more until these are answered or
/// 1 s is over; gives what became of the first `count`. ping's own count gives the last request only
/// twice the longest round trip so far, which a busy machine exceeds.
///
/// # Errors
/// ping cannot be run, or does not count.
pub fn ping(from: &Netns, to: IpAddr, count: u32, payload: u32) -> Result<PingReport> {
    let payload = payload.to_string();
    let steady = SteadyPing::with(from, to, 10, &["-s", &payload, "-M", "do"])?;
    let among = |text: &str| answered(text).range(1..=u64::from(count)).count();
    let patience = Duration::from_millis(10 * u64::from(count)) + LAST_ANSWER;
    let all = wait::until("all pings to be answered", patience, || {
        steady.text().is_ok_and(|text| among(&text) == count as usize)
    });
    let (report, text) = steady.finish()?;
    let received = if all.is_ok() { count as usize } else { among(&text) };
    Ok(PingReport { sent: report.sent.min(count.into()), received: received as u64 })
}

/// [`ping`] of ten that insists on every answer.
///
/// # Errors
/// An answer is missing.
pub fn ping_all(from: &Netns, to: IpAddr) -> Result<()> {
    let report = ping(from, to, 10, 56)?;
    ensure!(report.received == report.sent && report.sent == 10, "{to}: {report:?}");
    Ok(())
}

/// Pings until there is an answer.
///
/// # Errors
/// There was none within `deadline`.
pub fn ping_until_answer(from: &Netns, to: IpAddr, deadline: Duration) -> Result<()> {
    wait::until(&format!("an answer of {to} to {}", from.name()), deadline, || {
        let to = to.to_string();
        output_of(from.command("ping").args(["-n", "-c", "1", "-i", "0.1", "-W", "0.1", &to]))
            .is_ok_and(|output| output.status.success())
    })
}

/// How long the last of several pings is waited for.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// Answers that a steady ping has at least, so that "none was lost" says something.
const ANSWERS: usize = 11;

/// Requests that may be under way when a steady ping is stopped on a busy machine.
const UNDER_WAY: u64 = 100;

/// A ping that goes on until it is finished.
#[derive(Debug)]
pub struct SteadyPing {
    running: Running,
    answers: NamedTempFile,
}

impl SteadyPing {
    /// Starts pinging `to` every `interval_ms`.
    ///
    /// # Errors
    /// ping cannot be run.
    pub fn start(from: &Netns, to: IpAddr, interval_ms: u32) -> Result<Self> {
        Self::with(from, to, interval_ms, &[])
    }

    fn with(from: &Netns, to: IpAddr, interval_ms: u32, more: &[&str]) -> Result<Self> {
        let interval = format!("{}.{:03}", interval_ms / 1000, interval_ms % 1000);
        // A file takes any number of lines; a pipe that nobody reads would stop ping.
        let answers = tempfile::Builder::new().prefix("tapdtest-").tempfile()?;
        let mut command = from.command("ping");
        command.args(["-n", "-i", &interval]).args(more).arg(to.to_string());
        let running = Running::spawn(command.stdout(answers.reopen()?).stderr(Stdio::piped()))?;
        Ok(Self { running, answers })
    }

    /// Stops it and gives its counts and its lines.
    ///
    /// # Errors
    /// ping does not end or does not count.
    pub fn finish(self) -> Result<(PingReport, String)> {
        let Self { mut running, answers } = self;
        running.signal(libc::SIGINT)?;
        running.finish(Duration::from_secs(5))?;
        let text = std::fs::read_to_string(answers.path())?;
        Ok((PingReport::parse(&text)?, text))
    }

    /// What it said so far.
    fn text(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.answers.path())?)
    }

    /// Stops it and gives how many answers are missing before the last one that came; later ones
    /// are under way, and are not more than a few. What it went on beside may have been short: it
    /// goes on until there are a few answers to judge by.
    ///
    /// # Errors
    /// ping does not end or does not count, gets no answers, or got none for a while at the end.
    pub fn lost(self) -> Result<u64> {
        wait::until("a few answers to a steady ping", Duration::from_secs(10), || {
            self.text().is_ok_and(|text| answered(&text).len() >= ANSWERS)
        })?;
        let (report, text) = self.finish()?;
        let answered = answered(&text);
        let last = answered.last().copied().unwrap_or(0);
        ensure!(report.sent <= last + UNDER_WAY, "no answer after {last} of {}", report.sent);
        Ok(last - answered.len() as u64)
    }
}

/// The numbers of the requests that ping says were answered.
fn answered(text: &str) -> BTreeSet<u64> {
    // Others are errors that a router or the kernel told.
    text.lines()
        .filter(|line| line.contains(" bytes from "))
        .filter_map(|line| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok())
        .collect()
}

/// An iperf3 server in a namespace, listening on all of its addresses.
#[derive(Debug)]
pub struct IperfServer {
    _running: Running,
}

impl IperfServer {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn start(netns: &Netns) -> Result<Self> {
        let mut command = netns.command("iperf3");
        command.args(["-s", "-p", &IPERF_PORT.to_string()]);
        let running = Running::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        wait::until("iperf3 to listen", Duration::from_secs(5), || {
            netns.enter(|| Ok(listens_on(IPERF_PORT)?)).unwrap_or(false)
        })?;
        Ok(Self { _running: running })
    }
}

/// Whether a TCP socket listens on `port` in the calling thread's namespace.
fn listens_on(port: u16) -> std::io::Result<bool> {
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
    let local = format!(":{port:04X}");
    for table in tables {
        let text = std::fs::read_to_string(table)?;
        // Columns: slot, local address, remote address, state (0A = listening).
        let listens = text.lines().skip(1).any(|line| {
            let mut columns = line.split_whitespace().skip(1);
            columns.next().is_some_and(|address| address.ends_with(&local))
                && columns.nth(1) == Some("0A")
        });
        if listens {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What an iperf3 client does.
#[derive(Debug, Clone, Copy)]
pub struct IperfRun {
    /// Seconds.
    pub seconds: u32,
    /// Parallel streams.
    pub streams: u32,
    /// Whether the server sends.
    pub reverse: bool,
    /// UDP at this rate in Mbit/s with datagrams of this many bytes; otherwise TCP.
    pub udp: Option<(u32, u32)>,
}

/// What iperf3 measured at the receiver.
#[derive(Debug, Clone, Copy)]
pub struct IperfReport {
    /// Payload rate.
    pub bits_per_second: f64,
    /// Payload bytes received.
    pub bytes: f64,
    /// UDP datagrams lost, in percent; 0 for TCP.
    pub lost_percent: f64,
    /// TCP segments sent again; 0 for UDP.
    pub retransmits: u64,
}

/// Runs an iperf3 client against the server at `to`.
///
/// # Errors
/// iperf3 failed; the error holds its words.
pub fn iperf(from: &Netns, to: IpAddr, run: IperfRun) -> Result<IperfReport> {
    start_iperf(from, to, run)?.finish()
}

/// An iperf3 client under way.
#[derive(Debug)]
pub struct RunningIperf {
    running: Running,
    run: IperfRun,
}

/// Starts an iperf3 client against the server at `to`.
///
/// # Errors
/// iperf3 cannot be run.
pub fn start_iperf(from: &Netns, to: IpAddr, run: IperfRun) -> Result<RunningIperf> {
    start_iperf_with(from, to, run, &[])
}

/// The same with more arguments of iperf3's own.
///
/// # Errors
/// iperf3 cannot be run.
pub fn start_iperf_with(
    from: &Netns,
    to: IpAddr,
    run: IperfRun,
    arguments: &[&str],
) -> Result<RunningIperf> {
    let mut command = from.command("iperf3");
    command.args(["-J", "-c", &to.to_string(), "-p", &IPERF_PORT.to_string()]);
    command.args(["-t", &run.seconds.to_string(), "-P", &run.streams.to_string()]);
    command.args(["--connect-timeout", "5000"]);
    command.args(arguments);
    if run.reverse {
        command.arg("-R");
    }
    if let Some((megabits, bytes)) = run.udp {
        command.args(["-u", "-b", &format!("{megabits}M"), "-l", &bytes.to_string()]);
    }
    let running = Running::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    Ok(RunningIperf { running, run })
}

impl RunningIperf {
    /// Waits for its end.
    ///
    /// # Errors
    /// iperf3 failed; the error holds its words.
    pub fn finish(self) -> Result<IperfReport> {
        let deadline = Duration::from_secs(u64::from(self.run.seconds) + 15);
        let output = self.running.finish(deadline)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let json: Value = serde_json::from_str(&text).with_context(|| format!("iperf3: {text}"))?;
        ensure!(json.get("error").is_none(), "iperf3: {}", json["error"]);
        let number = |field: &Value| field.as_f64().ok_or_else(|| anyhow!("iperf3 said: {text}"));
        let end = &json["end"];
        let received = if self.run.udp.is_some() { &end["sum"] } else { &end["sum_received"] };
        Ok(IperfReport {
            bits_per_second: number(&received["bits_per_second"])?,
            bytes: number(&received["bytes"])?,
            lost_percent: received["lost_percent"].as_f64().unwrap_or(0.0),
            retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_counts_of_ping() {
        let text = "--- ::1 ping statistics ---\n\
                    30 packets transmitted, 28 received, +1 errors, 6.66667% packet loss, time 9ms\n";
        assert_eq!(PingReport::parse(text).unwrap(), PingReport { sent: 30, received: 28 });
        assert!(PingReport::parse("ping: unknown host").is_err());
    }
}
