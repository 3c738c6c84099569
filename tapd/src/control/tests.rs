use super::*;
use crate::exit::Exit;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A server whose control loop is `answer`, on a thread that ends with the server.
struct Daemon {
    _directory: tempfile::TempDir,
    path: PathBuf,
    server: Option<Server>,
    wakes: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Daemon {
    fn start(answer: impl Fn(Incoming) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let wakes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&wakes);
        let waker: Box<dyn Fn() + Send + Sync> = Box::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        let (server, incoming) = Server::bind(&path, waker).unwrap();
        let thread = thread::spawn(move || incoming.into_iter().for_each(answer));
        Self { _directory: directory, path, server: Some(server), wakes, thread: Some(thread) }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }

    /// Sends raw bytes and returns the reply's line.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        // The server may refuse before it has read all.
        let _ = stream.write_all(bytes);
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.server.take());
        self.thread.take().unwrap().join().unwrap();
        assert!(!self.path.exists());
    }
}

fn echo(incoming: Incoming) {
    match incoming.request {
        Request::Show { topic: Topic::Status, .. } => {
            incoming.reply.ok(&StatusReply { name: "alpha".into(), ..Default::default() });
        }
        Request::Reload => incoming.reply.refuse("line 7 is wrong"),
        Request::FdbFlush { .. } => incoming.reply.ok(&()),
        Request::Rehandshake { node: Some(node) } => incoming.reply.later(move || match node {
            node if node == "beta" => Ok(node),
            node => Err(format!("no node {node}")),
        }),
        Request::Capture { .. } => incoming.reply.stream(|mut stream| {
            stream.write_all(&[0x0a, 0x0d, 0x0d, 0x0a, 0, 1, 2]).unwrap();
        }),
        _ => drop(incoming.reply),
    }
}

#[test]
fn requests_are_answered_and_the_loop_is_woken() {
    let daemon = Daemon::start(echo);
    let status: StatusReply =
        daemon.client().request(Request::Show { topic: Topic::Status, name: None }).unwrap();
    assert_eq!(status.name, "alpha");
    daemon.client().request::<()>(Request::FdbFlush { vni: None }).unwrap();
    assert_eq!(daemon.wakes.load(Ordering::SeqCst), 2);
    let mode = std::fs::metadata(&daemon.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn refusals_carry_the_daemons_words() {
    let daemon = Daemon::start(echo);
    let failure = daemon.client().request::<()>(Request::Reload).unwrap_err();
    assert_eq!(failure.exit(), Exit::Refused);
    assert!(failure.to_string().contains("line 7 is wrong"), "{failure}");
    let failure = daemon.client().request::<()>(Request::Rehandshake { node: None }).unwrap_err();
    assert!(failure.to_string().contains("before it answered"), "{failure}");
}

#[test]
fn what_takes_a_moment_is_answered_later() {
    let daemon = Daemon::start(echo);
    let ask = |node: &str| {
        daemon.client().request::<String>(Request::Rehandshake { node: Some(node.to_owned()) })
    };
    assert_eq!(ask("beta").unwrap(), "beta");
    let failure = ask("gamma").unwrap_err();
    assert_eq!(failure.exit(), Exit::Refused);
    assert!(failure.to_string().contains("no node gamma"), "{failure}");
}

#[test]
fn capture_is_raw_bytes_after_the_line() {
    let daemon = Daemon::start(echo);
    let mut bytes = Vec::new();
    let request = Request::Capture { vni: None, count: None };
    daemon.client().stream(request).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, [0x0a, 0x0d, 0x0d, 0x0a, 0, 1, 2]);
}

#[test]
fn events_reach_every_watcher_until_the_daemon_ends() {
    let events = Arc::new(Mutex::new(Events::default()));
    let hub = Arc::clone(&events);
    let daemon = Daemon::start(move |incoming| hub.lock().unwrap().watch(incoming.reply));
    let mut streams = [0; 2].map(|_| daemon.client().stream(Request::Watch {}).unwrap());
    let told = Event::new("peer_up", "aes-256-gcm").of_peer(2, "beta");
    events.lock().unwrap().publish(&told);
    for stream in &mut streams {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), told);
    }
    *events.lock().unwrap() = Events::default();
    for stream in &mut streams {
        assert_eq!(stream.read_line(&mut String::new()).unwrap(), 0);
    }
}

#[test]
fn stream_notices_that_its_client_is_gone() {
    let (ended, wait) = std::sync::mpsc::channel();
    let daemon = Daemon::start(move |incoming| {
        let ended = ended.clone();
        incoming.reply.stream(move |stream| {
            ended.send(hung_up(&stream)).unwrap();
            while !hung_up(&stream) {}
            ended.send(true).unwrap();
        });
    });
    let stream = daemon.client().stream(Request::Capture { vni: None, count: None }).unwrap();
    let limit = std::time::Duration::from_secs(10);
    assert!(!wait.recv_timeout(limit).unwrap());
    drop(stream);
    assert!(wait.recv_timeout(limit).unwrap());
}

#[test]
fn bad_lines_get_an_error_reply() {
    let daemon = Daemon::start(echo);
    let refused = |bytes: &[u8], part: &str| {
        let line = daemon.raw(bytes);
        assert!(line.starts_with(r#"{"version":1,"ok":false,"error":"#), "{line}");
        assert!(line.contains(part), "{line}");
    };
    refused(b"hello\n", "not a request");
    refused(b"{\"version\":2,\"command\":\"reload\"}\n", "speaks version 1");
    refused(b"{\"version\":1,\"command\":\"dance\"}\n", "dance");
    refused(b"{\"version\":1,\"command\":\"show\",\"topic\":\"wine\"}\n", "wine");
    refused(b"\xff\xfe\n", "not a request");
    refused(&[b'x'; 100_000], "longer than 65536 bytes");
    assert_eq!(daemon.wakes.load(Ordering::SeqCst), 0);
    let line = daemon.raw(b"{\"version\":1,\"command\":\"show\",\"topic\":\"status\"}\n");
    assert!(line.starts_with(r#"{"version":1,"ok":true,"data":{"#), "{line}");
}

#[test]
fn half_a_line_is_refused() {
    let daemon = Daemon::start(echo);
    let mut stream = UnixStream::connect(&daemon.path).unwrap();
    stream.write_all(b"{\"version\":1").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.contains("no line end"), "{reply}");
}

#[test]
fn connections_are_limited_and_come_back() {
    let daemon = Daemon::start(echo);
    let idle: Vec<_> = (0..16).map(|_| UnixStream::connect(&daemon.path).unwrap()).collect();
    let line = daemon.raw(b"");
    assert!(line.contains("16 clients"), "{line}");
    drop(idle);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let flush = || daemon.client().request::<()>(Request::FdbFlush { vni: None });
    while flush().is_err() {
        assert!(std::time::Instant::now() < deadline, "connections are not given back");
        thread::yield_now();
    }
}

#[test]
fn second_daemon_is_refused_and_a_stale_socket_replaced() {
    let daemon = Daemon::start(echo);
    let error = Server::bind(&daemon.path, Box::new(|| {})).unwrap_err().to_string();
    assert!(error.contains("another tapd already listens"), "{error}");
    let directory = tempfile::tempdir().unwrap();
    let stale = directory.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    assert!(Server::bind(&stale, Box::new(|| {})).is_ok());
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let error = Server::bind(&file, Box::new(|| {})).unwrap_err().to_string();
    assert!(error.contains("not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn only_its_own_socket_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let (server, _incoming) = Server::bind(&path, Box::new(|| {})).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(UnixStream::connect(&path).is_ok());
}

#[test]
fn no_daemon_is_said_so() {
    let directory = tempfile::tempdir().unwrap();
    let failure = Client::connect(&directory.path().join("none.sock")).unwrap_err();
    assert_eq!(failure.exit(), Exit::Unreachable);
    assert!(failure.to_string().contains("is tapd running?"), "{failure}");
}
