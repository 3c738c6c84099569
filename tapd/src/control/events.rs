//! What happens in the daemon, told to all who watch: `tapd watch`.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::server::{ReplySender, hung_up};

/// Lines that wait at most for one watcher.
const WAITING: usize = 1024;
/// How often an idle watch looks whether its client is still there.
const IDLE: Duration = Duration::from_millis(200);

/// Something that happened.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// When: milliseconds since 1970-01-01 UTC.
    pub(crate) time_ms: u64,
    /// What, in `snake_case`, such as `link_down`.
    pub(crate) event: String,
    /// Id of the peer that it is about.
    #[serde(default)]
    pub(crate) node: Option<u16>,
    /// Name of that peer.
    #[serde(default)]
    pub(crate) peer: Option<String>,
    /// Name of the link that it is about.
    #[serde(default)]
    pub(crate) link: Option<String>,
    /// Why, in a few words.
    #[serde(default)]
    pub(crate) cause: String,
    /// What else there is to say, by key.
    #[serde(flatten)]
    pub(crate) more: BTreeMap<String, Value>,
}

impl Event {
    /// An event of now.
    pub(crate) fn new(event: &str, cause: impl Into<String>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self {
            time_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            event: event.to_owned(),
            cause: cause.into(),
            ..Self::default()
        }
    }

    /// The event as one about a peer.
    pub(crate) fn of_peer(self, node: u16, name: impl Into<String>) -> Self {
        Self { node: Some(node), peer: Some(name.into()), ..self }
    }
}

/// Hands events to the watchers; dropping it ends their streams.
#[derive(Debug, Default)]
pub(crate) struct Events {
    watchers: Vec<Watcher>,
}

#[derive(Debug)]
struct Watcher {
    lines: SyncSender<Line>,
    /// Held by the stream.
    alive: Weak<()>,
    /// Events that found no room since the last one that did.
    lost: u64,
}

/// A JSON line without its end.
type Line = Arc<[u8]>;

impl Events {
    /// Answers a request for events: the client gets all that are published from now on.
    pub(crate) fn watch(&mut self, reply: ReplySender) {
        // Those that left while nothing happened.
        self.watchers.retain(|watcher| watcher.alive.strong_count() > 0);
        let (lines, waiting) = sync_channel(WAITING);
        let alive = Arc::new(());
        self.watchers.push(Watcher { lines, alive: Arc::downgrade(&alive), lost: 0 });
        reply.stream(move |stream| {
            copy(&waiting, stream);
            drop(alive);
        });
    }

    /// Tells all watchers. Never blocks: who is too slow misses events, and is told how many.
    pub(crate) fn publish(&mut self, event: &Event) {
        if self.watchers.is_empty() {
            return;
        }
        // Its keys are strings, so it always becomes JSON.
        let Ok(line) = serde_json::to_vec(event) else { return };
        let line = Line::from(line);
        self.watchers.retain_mut(|watcher| watcher.tell(&line));
    }
}

impl Watcher {
    /// Whether the watcher is still there.
    fn tell(&mut self, line: &Line) -> bool {
        if self.lost > 0 {
            let cause = format!("{} events were lost, their reader being too slow", self.lost);
            let note = serde_json::to_vec(&Event::new("events_lost", cause)).unwrap_or_default();
            match self.lines.try_send(note.into()) {
                Ok(()) => self.lost = 0,
                Err(TrySendError::Full(_)) => {
                    self.lost += 1;
                    return true;
                }
                Err(TrySendError::Disconnected(_)) => return false,
            }
        }
        match self.lines.try_send(Line::clone(line)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.lost += 1;
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}

/// Writes lines until the client or [`Events`] is gone. Runs on the connection's own thread.
fn copy(lines: &Receiver<Line>, mut stream: UnixStream) {
    let mut text = Vec::new();
    loop {
        match lines.recv_timeout(IDLE) {
            Ok(line) => {
                // What waits goes out in one write.
                text.clear();
                for line in [line].into_iter().chain(lines.try_iter().take(WAITING)) {
                    text.extend_from_slice(&line);
                    text.push(b'\n');
                }
                if stream.write_all(&text).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) if !hung_up(&stream) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_this_form() {
        let mut event = Event {
            time_ms: 7,
            event: "link_suspect".into(),
            link: Some("lan".into()),
            cause: "6 rounds behind link wan".into(),
            ..Event::default()
        }
        .of_peer(2, "beta");
        let text = r#"{"time_ms":7,"event":"link_suspect","node":2,"peer":"beta","link":"lan","cause":"6 rounds behind link wan"}"#;
        assert_eq!(serde_json::to_string(&event).unwrap(), text);
        assert_eq!(serde_json::from_str::<Event>(text).unwrap(), event);
        event.more.insert("from".into(), 1500.into());
        let text = serde_json::to_string(&event).unwrap();
        assert!(text.ends_with(r#","from":1500}"#), "{text}");
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        let null = serde_json::to_string(&Event::new("loop_found", "x")).unwrap();
        assert!(null.contains(r#""node":null,"peer":null,"link":null"#), "{null}");
    }

    #[test]
    fn slow_watchers_miss_events_and_are_told() {
        let (lines, waiting) = sync_channel(2);
        let watcher = Watcher { lines, alive: Weak::new(), lost: 0 };
        let mut events = Events { watchers: vec![watcher] };
        let publish = |events: &mut Events, name: &str| events.publish(&Event::new(name, ""));
        for name in ["a", "b", "c", "d"] {
            publish(&mut events, name);
        }
        let next = || {
            let line = waiting.try_recv().unwrap();
            serde_json::from_slice::<Event>(&line).unwrap()
        };
        assert_eq!([next().event, next().event], ["a", "b"]);
        publish(&mut events, "e");
        let lost = next();
        assert_eq!(lost.event, "events_lost");
        assert!(lost.cause.starts_with("2 events"), "{}", lost.cause);
        assert_eq!(next().event, "e");
        drop(waiting);
        publish(&mut events, "f");
        assert!(events.watchers.is_empty());
    }
}
