//! `tapd watch`: prints what happens in a daemon, as it happens.

use std::fmt::Write as _;
use std::io::{self, BufRead, Write};
use std::path::Path;

use anyhow::{Context, anyhow};

use crate::control::{Client, Event, Request};
use crate::exit::{Exit, Failure};

/// Asks for events and prints them: `count` of them, or without an end.
///
/// Without an end it is for the user to interrupt, or for who reads standard output to leave.
pub(crate) fn run(socket: &Path, json: bool, count: Option<u64>) -> Result<(), Failure> {
    let events = Client::connect(socket)?.stream(Request::Watch {})?;
    let printed = match print(events, &mut io::stdout().lock(), json, count) {
        Ok(printed) => printed,
        // Who reads has seen enough.
        Err(Ended::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        Err(Ended::Output(error)) => return Err(anyhow!(error).context("cannot print").into()),
        Err(Ended::Input(error)) => return Err(error.context("the watch broke off").into()),
    };
    let wanted = match count {
        Some(count) if printed >= count => return Ok(()),
        Some(count) => format!("{printed} of {count} events"),
        None => format!("{printed} events"),
    };
    Err(Failure::message(
        Exit::Runtime,
        format_args!("the daemon ended the watch after {wanted}: it was stopped; its log says why"),
    ))
}

/// What ended a watch before its time.
#[derive(Debug)]
enum Ended {
    Input(anyhow::Error),
    Output(io::Error),
}

/// Prints until there are `count` events or no more; returns how many there were.
fn print(
    mut from: impl BufRead,
    to: &mut impl Write,
    json: bool,
    count: Option<u64>,
) -> Result<u64, Ended> {
    let (mut printed, mut line) = (0, String::new());
    let mut columns = Columns::default();
    while count.is_none_or(|count| printed < count) {
        line.clear();
        let length = from.read_line(&mut line).map_err(|error| Ended::Input(error.into()))?;
        // Half a line is one that the daemon did not come to end.
        if length == 0 || !line.ends_with('\n') {
            break;
        }
        let event: Event = serde_json::from_str(&line)
            .context("an event is not understood; client and daemon may differ in version")
            .map_err(Ended::Input)?;
        if !json {
            line = columns.line(&event);
        }
        to.write_all(line.as_bytes()).and_then(|()| to.flush()).map_err(Ended::Output)?;
        printed += 1;
    }
    Ok(printed)
}

/// Widths of the columns, as far as they are known: what comes later can only widen them.
#[derive(Debug)]
struct Columns {
    peer: usize,
    link: usize,
    event: usize,
}

impl Default for Columns {
    fn default() -> Self {
        Self { peer: 1, link: 4, event: 8 }
    }
}

impl Columns {
    /// An event for people, with its line end.
    fn line(&mut self, event: &Event) -> String {
        let peer = event.peer.as_deref().unwrap_or("-");
        let link = event.link.as_deref().unwrap_or("-");
        // Where the link stands beside it, `link_down` is `down`.
        let word = event.event.strip_prefix("link_").unwrap_or(&event.event).replace('_', " ");
        let widen = |width: &mut usize, text: &str| *width = (*width).max(text.chars().count());
        widen(&mut self.peer, peer);
        widen(&mut self.link, link);
        widen(&mut self.event, &word);
        let Self { peer: peer_width, link: link_width, event: event_width } = *self;
        let time = time_of_day(event.time_ms);
        let mut line = format!(
            "{time} {peer:<peer_width$} {link:<link_width$} {word:<event_width$} {}",
            event.cause
        );
        for (key, value) in &event.more {
            // Writing to a string cannot fail.
            let _ = write!(line, " {key}={value}");
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
}

/// `12:34:56.789`, UTC.
fn time_of_day(time_ms: u64) -> String {
    let (seconds, ms) = (time_ms / 1_000, time_ms % 1_000);
    let (hours, minutes) = (seconds / 3_600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{ms:03}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "\
{\"time_ms\":1700051696789,\"event\":\"link_suspect\",\"node\":2,\"peer\":\"beta\",\"link\":\"lan\",\"cause\":\"6 rounds behind link wan\"}
{\"time_ms\":1700051696790,\"event\":\"path_mtu\",\"node\":2,\"peer\":\"beta\",\"link\":\"wireless\",\"cause\":\"probed\",\"to\":1400}
{\"time_ms\":0,\"event\":\"loop_found\",\"node\":null,\"peer\":null,\"link\":null,\"cause\":\"\"}
";

    fn printed(text: &str, json: bool, count: Option<u64>) -> (String, u64) {
        let mut to = Vec::new();
        let printed = print(text.as_bytes(), &mut to, json, count).unwrap();
        (String::from_utf8(to).unwrap(), printed)
    }

    #[test]
    fn people_read_columns() {
        let expected = "\
12:34:56.789 beta lan  suspect  6 rounds behind link wan
12:34:56.790 beta wireless path mtu probed to=1400
00:00:00.000 -    -        loop found
";
        assert_eq!(printed(LINES, false, None), (expected.to_owned(), 3));
    }

    #[test]
    fn programs_read_lines_as_they_came() {
        assert_eq!(printed(LINES, true, None), (LINES.to_owned(), 3));
        let first = &LINES[..=LINES.find('\n').unwrap()];
        assert_eq!(printed(LINES, true, Some(1)), (first.to_owned(), 1));
        // The daemon ended in the middle of the second line.
        assert_eq!(printed(&LINES[..first.len() + 9], true, None), (first.to_owned(), 1));
    }

    #[test]
    fn nonsense_is_named() {
        let ended = print("hello\n".as_bytes(), &mut Vec::new(), true, None).unwrap_err();
        let Ended::Input(error) = ended else { panic!("{ended:?}") };
        assert!(error.to_string().contains("not understood"), "{error}");
    }
}
