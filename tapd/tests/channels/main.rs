//! `tapd send`, `recv` and `forward` against a tapd that the test plays.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the helpers are part of the tests")]

mod fake;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use fake::Fake;
use socket2::SockRef;

/// A read that takes so long has failed.
const TIMEOUT: Duration = Duration::from_secs(30);

fn tapd(fake: &Fake, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tapd"));
    command
        .args(arguments)
        .current_dir(fake.directory.path())
        .env("TAPD_CONTROL_SOCKET", fake.directory.path().join("tapd.sock"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs it to its end with this input.
fn run(fake: &Fake, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = tapd(fake, arguments).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            // A command that refuses does not read.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().unwrap()
    })
}

#[track_caller]
fn expect(output: &Output, code: i32) -> &str {
    let said = std::str::from_utf8(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

/// A command that goes on, ended with the test.
struct Running {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn new(fake: &Fake, arguments: &[&str]) -> Self {
        let mut child = tapd(fake, arguments).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr }
    }

    /// The next line on standard error.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(2_654_435_761) >> 16) as u8).collect()
}

/// Starts `tapd recv` and waits until it has the channel.
fn receiver(fake: &Fake, arguments: &[&str]) -> Child {
    let mut all = vec!["recv", "letters", "--events"];
    all.extend(arguments);
    let mut child = tapd(fake, &all).spawn().unwrap();
    let mut line = [0; 16];
    child.stderr.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"tapd: beta is up");
    child
}

#[test]
fn lines_are_messages() {
    let fake = Fake::new();
    for (form, expected) in [
        (&["--lines", "--from"][..], "beta\tone\nbeta\t\nbeta\tthree\n"),
        (&["--null"], "one\0\0three\0"),
        (&["--length"], "3\none0\n5\nthree"),
        (&["--length", "--from"], "beta\t3\nonebeta\t0\nbeta\t5\nthree"),
        (&[], "onethree"),
    ] {
        let child = receiver(&fake, &[&["--count", "3"], form].concat());
        let sent = run(&fake, &["send", "letters", "--to", "beta", "--lines"], b"one\n\nthree");
        assert_eq!(expect(&sent, 0), "");
        let received = child.wait_with_output().unwrap();
        expect(&received, 0);
        assert_eq!(String::from_utf8(received.stdout).unwrap(), expected, "{form:?}");
    }
}

#[test]
fn a_file_is_one_message() {
    let fake = Fake::new();
    for message in [pattern(fake::MAX_LEN as usize), vec![]] {
        fs::write(fake.directory.path().join("file"), &message).unwrap();
        let child = receiver(&fake, &["--count", "1"]);
        let options = ["--to", "all", "--priority", "7", "--ttl", "5000", "file"];
        let socket = fake.socket("letters");
        // The channel by the path of its socket.
        let arguments = [&["send", socket.to_str().unwrap()], &options[..]].concat();
        expect(&run(&fake, &arguments, b""), 0);
        let received = child.wait_with_output().unwrap();
        expect(&received, 0);
        assert!(received.stdout == message, "{} bytes", message.len());
    }
}

#[test]
fn many_lines_arrive_in_order() {
    let fake = Fake::new();
    let lines = (0..20_000).map(|number| format!("line {number}\n")).collect::<String>();
    let child = receiver(&fake, &["--count", "20000", "--lines"]);
    thread::scope(|scope| {
        scope.spawn(|| {
            expect(&run(&fake, &["send", "letters", "--to", "2", "--lines"], lines.as_bytes()), 0);
        });
        let received = child.wait_with_output().unwrap();
        assert!(received.stdout == lines.as_bytes());
    });
}

#[test]
fn refusals_say_what_to_do() {
    let fake = Fake::new();
    let long = vec![b'x'; fake::MAX_LEN as usize + 1];
    let pipes = fake.socket("pipes");
    let pipes = pipes.to_str().unwrap();
    let cases: [(&[&str], &[u8], i32, &str); 12] = [
        (&["send", "letters", "--to", "gamma", "--timeout", "0"], b"", 7, "seen were: beta (2)"),
        (&["send", "letters", "--to", "3", "--timeout", "0"], b"", 7, "node 3, which is not up"),
        (&["send", "letters", "--to", "beta"], &long, 1, "than the 2097152 bytes"),
        (&["send", "letters", "--to", "beta", "--lines"], &long, 1, "a line is longer"),
        (&["send", "letters", "--to", "beta"], b"poison", 6, "the channel was taken out"),
        (&["send", "letters", "--to", "beta", "none"], b"", 1, "cannot read none"),
        (&["send", "none", "--to", "beta"], b"", 5, "is tapd running"),
        (&["send", "pipes", "--to", "beta", "--lines"], b"", 2, "goes to one node"),
        (&["recv", "pipes", "--from"], b"", 2, "one stream is written as it is"),
        (&["recv", "letters", "--socket", pipes], b"", 6, "channel pipes, not letters"),
        (&["forward", "letters", "--connect", "x:1"], b"", 6, "mode = \"stream\""),
        (&["forward", "pipes", "--connect", "nowhere"], b"", 2, "HOST:PORT"),
    ];
    for (arguments, input, code, part) in cases {
        let output = run(&fake, arguments, input);
        let said = expect(&output, code);
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    let mut first = receiver(&fake, &[]);
    let second = run(&fake, &["recv", "letters"], b"");
    assert!(expect(&second, 6).contains("another program receives"));
    first.kill().unwrap();
    first.wait().unwrap();
}

#[test]
fn a_stream_goes_from_input_to_output() {
    let fake = Fake::new();
    let bytes = pattern(3_000_000);
    thread::scope(|scope| {
        let received = scope.spawn(|| run(&fake, &["recv", "pipes"], b""));
        let sent = run(&fake, &["send", "pipes", "--to", "beta"], &bytes);
        assert_eq!(expect(&sent, 0), "");
        assert!(sent.stdout.is_empty());
        let received = received.join().unwrap();
        assert_eq!(expect(&received, 0), "");
        assert!(received.stdout == bytes);
    });
}

#[test]
fn a_stream_that_breaks_is_a_failure() {
    let fake = Fake::new();
    let mut sender = tapd(&fake, &["send", "pipes", "--to", "beta"]);
    let mut sender = sender.stdin(Stdio::piped()).spawn().unwrap();
    let mut child = tapd(&fake, &["recv", "pipes"]).spawn().unwrap();
    let mut stdin = sender.stdin.take().unwrap();
    stdin.write_all(b"half").unwrap();
    let mut half = [0; 4];
    child.stdout.as_mut().unwrap().read_exact(&mut half).unwrap();
    // The sender's input is not at its end.
    sender.kill().unwrap();
    sender.wait().unwrap();
    let received = child.wait_with_output().unwrap();
    assert!(expect(&received, 1).contains("gave the stream up"));
}

/// What a killed tapd had taken is lost: that is no success, whatever it left unread.
#[test]
fn a_tapd_that_is_killed_is_a_failure_to_send() {
    let fake = Fake::new();
    let dead = "tapd ended without a word";
    for input in [&b"kill"[..], b"kill\nunread\nunread too\n"] {
        let output = run(&fake, &["send", "letters", "--to", "beta", "--lines"], input);
        let said = expect(&output, 1);
        assert!(said.contains(dead), "{said}");
    }
    thread::scope(|scope| {
        let received = scope.spawn(|| run(&fake, &["recv", "pipes"], b""));
        let sent = run(&fake, &["send", "pipes", "--to", "beta"], b"kill");
        assert!(expect(&sent, 1).contains(dead));
        assert_eq!(received.join().unwrap().stdout, b"kill");
    });
}

#[test]
fn messages_that_went_to_nobody_are_a_failure() {
    let fake = Fake::new();
    let receiver = receiver(&fake, &["--count", "1"]);
    let input = b"nobody\none\nnobody\n";
    let output = run(&fake, &["send", "letters", "--to", "all", "--lines"], input);
    let said = expect(&output, 1);
    assert!(said.contains("2 messages may not have arrived"), "{said}");
    assert_eq!(receiver.wait_with_output().unwrap().stdout, b"one");
}

#[test]
fn waits_are_told_and_end_where_the_user_said_so() {
    let fake = Fake::new();
    let alone = "waiting for node beta, which is not up on this channel; seen were: none";
    let down = "waiting for node beta: no link is up";
    let silent = "waiting for node beta to end its side";
    for (channel, what) in [
        ("lonely", alone),
        ("lonely-pipes", alone),
        ("stuck", down),
        ("stuck-pipes", down),
        ("mute-pipes", "waiting for node beta to answer"),
        ("silent-pipes", silent),
    ] {
        // More than sockets hold, where that matters.
        let input = if channel == "stuck-pipes" { pattern(8 << 20) } else { b"x".to_vec() };
        let begin = Instant::now();
        let output = run(&fake, &["send", channel, "--to", "beta", "--timeout", "3"], &input);
        let took = begin.elapsed();
        let said = expect(&output, 7);
        assert_eq!(said.matches(&format!("tapd: {what}\n")).count(), 1, "{channel}: {said}");
        let end = format!("tapd: gave up after 3 s (--timeout) of {what}\n");
        assert!(said.ends_with(&end), "{channel}: {said}");
        assert!(took >= Duration::from_secs(3), "{channel}: {took:?}");
    }
    // Without a limit it goes on.
    let mut endless = Running::new(&fake, &["send", "lonely", "--to", "beta"]);
    assert_eq!(endless.line(), format!("tapd: {alone}\n"));
    assert!(endless.child.try_wait().unwrap().is_none());
}

/// Who sends what comes now and then waits for that, and not for the node.
#[test]
fn input_may_take_longer_than_any_wait() {
    let fake = Fake::new();
    // Who takes is there before: its start counts for the one who sends.
    let letters = receiver(&fake, &["--count", "1"]);
    let pipes = tapd(&fake, &["recv", "pipes"]).spawn().unwrap();
    fake.wait_for_accept();
    // Room for a machine that is busy.
    let senders = ["letters", "pipes"].map(|channel| {
        let mut sender = tapd(&fake, &["send", channel, "--to", "beta", "--timeout", "4"]);
        sender.stdin(Stdio::piped()).spawn().unwrap()
    });
    thread::sleep(Duration::from_millis(5_000));
    for (mut sender, child) in senders.into_iter().zip([letters, pipes]) {
        sender.stdin.take().unwrap().write_all(b"at last").unwrap();
        assert_eq!(expect(&sender.wait_with_output().unwrap(), 0), "");
        assert_eq!(child.wait_with_output().unwrap().stdout, b"at last");
    }
}

/// What tapd had no room for at once goes when it has, and not with the next input.
#[test]
fn the_end_of_a_long_message_does_not_wait_for_more_input() {
    let fake = Fake::new();
    let receiver = receiver(&fake, &["--count", "1"]);
    let mut sender = tapd(&fake, &["send", "letters", "--to", "beta", "--lines"]);
    let mut sender = sender.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = sender.stdin.take().unwrap();
    // Several times what a socket holds.
    let message = [&b"slow"[..], &[b'x'; 1 << 20]].concat();
    stdin.write_all(&message).unwrap();
    stdin.write_all(b"\n").unwrap();
    let (done, received) = mpsc::channel();
    thread::spawn(move || done.send(receiver.wait_with_output()));
    let received = received.recv_timeout(TIMEOUT);
    // Only now.
    drop(stdin);
    let sent = sender.wait_with_output().unwrap();
    assert!(received.expect("no message").unwrap().stdout == message);
    assert_eq!(expect(&sent, 0), "");
}

#[test]
fn a_connection_that_waits_says_for_what() {
    let fake = Fake::new();
    for (channel, what) in
        [("lonely-pipes", "node beta, which is not up"), ("mute-pipes", "node beta to answer")]
    {
        let listen = ["forward", channel, "--listen", "127.0.0.1:0", "--to", "beta"];
        let mut here = Running::new(&fake, &[&listen[..], &["--timeout", "3"]].concat());
        let line = here.line();
        let address = line.strip_prefix("tapd: listening on ").unwrap();
        let mut client = connect(address.strip_suffix(", for beta\n").unwrap());
        assert!(here.line().starts_with(&format!("tapd: waiting for {what}")));
        let error = client.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let line = here.line();
        assert!(line.starts_with("tapd: a connection was reset: gave up after 3 s"), "{line}");
    }
}

/// Both ends of a forwarding to a listener of the test.
struct Forwarding {
    _fake: Fake,
    _ends: [Running; 2],
    server: TcpListener,
    address: String,
}

fn forwarding() -> Forwarding {
    let fake = Fake::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = server.local_addr().unwrap().to_string();
    let mut there = Running::new(&fake, &["forward", "pipes", "--connect", &to]);
    assert_eq!(there.line(), format!("tapd: carrying streams to {to}\n"));
    let listen = ["forward", "pipes", "--listen", "127.0.0.1:0", "--to", "beta"];
    let mut here = Running::new(&fake, &listen);
    let line = here.line();
    let address = line.strip_prefix("tapd: listening on ").unwrap();
    let address = address.strip_suffix(", for beta\n").unwrap().to_owned();
    Forwarding { _fake: fake, _ends: [there, here], server, address }
}

fn accept(server: &TcpListener) -> TcpStream {
    let stream = server.accept().unwrap().0;
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

#[test]
fn connections_are_carried_and_end_one_side_at_a_time() {
    let forwarding = forwarding();
    let bytes = pattern(2_000_000);
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let mut client = connect(&forwarding.address);
                thread::scope(|scope| {
                    let mut writer = client.try_clone().unwrap();
                    let bytes = &bytes;
                    scope.spawn(move || {
                        writer.write_all(bytes).unwrap();
                        writer.shutdown(Shutdown::Write).unwrap();
                    });
                    let mut answer = Vec::new();
                    client.read_to_end(&mut answer).unwrap();
                    assert!(answer == bytes.iter().rev().copied().collect::<Vec<_>>());
                });
            });
        }
        for _ in 0..20 {
            let mut served = accept(&forwarding.server);
            scope.spawn(move || {
                // Answers only behind the end: it must have been carried.
                let mut request = Vec::new();
                served.read_to_end(&mut request).unwrap();
                request.reverse();
                served.write_all(&request).unwrap();
            });
        }
    });
}

#[test]
fn resets_are_carried_both_ways() {
    let forwarding = forwarding();
    for client_resets in [true, false] {
        let mut client = connect(&forwarding.address);
        client.write_all(b"x").unwrap();
        let mut served = accept(&forwarding.server);
        served.read_exact(&mut [0; 1]).unwrap();
        let (resets, mut other) = if client_resets { (client, served) } else { (served, client) };
        SockRef::from(&resets).set_linger(Some(Duration::ZERO)).unwrap();
        drop(resets);
        let error = other.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "client: {client_resets}");
    }
}

/// The connection ends in order, but what it sent last may be lost: it must not seem to have arrived.
#[test]
fn a_tapd_that_is_killed_is_a_reset() {
    let forwarding = forwarding();
    let mut client = connect(&forwarding.address);
    client.write_all(b"kill").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut served = accept(&forwarding.server);
    let mut request = Vec::new();
    served.read_to_end(&mut request).unwrap();
    assert_eq!(request, b"kill");
    served.write_all(b"x").unwrap();
    drop(served);
    client.read_exact(&mut [0; 1]).unwrap();
    let error = client.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_server_that_is_not_there_is_a_reset() {
    let mut forwarding = forwarding();
    let Forwarding { _ends: [there, _], server, address, .. } = &mut forwarding;
    // Nobody listens any more.
    let closed = std::mem::replace(server, TcpListener::bind("127.0.0.1:0").unwrap());
    drop(closed);
    let mut client = connect(address);
    let error = client.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(there.line().contains("Connection refused"));
}

#[test]
fn a_channel_without_room_is_asked_again() {
    let fake = Fake::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = server.local_addr().unwrap().to_string();
    let mut there = Running::new(&fake, &["forward", "busy", "--connect", &to]);
    there.line();
    let mut first = accept(&server);
    let line = there.line();
    assert!(line.starts_with("tapd: cannot take another stream yet: "), "{line}");
    assert!(line.contains("64 programs"), "{line}");
    // The first one is carried on, and there is a second one.
    accept(&server);
    assert_eq!(first.read(&mut [0; 1]).unwrap(), 0);
    first.write_all(b"x").unwrap();
}

#[test]
fn unix_sockets_are_carried_too() {
    let fake = Fake::new();
    let server =
        std::os::unix::net::UnixListener::bind(fake.directory.path().join("server")).unwrap();
    let mut there = Running::new(&fake, &["forward", "pipes", "--connect", "unix:server"]);
    there.line();
    let path = fake.directory.path().join("here");
    // Left by one that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listen = ["forward", "pipes", "--listen", "unix:here", "--to", "2"];
    let mut here = Running::new(&fake, &listen);
    assert_eq!(here.line(), "tapd: listening on unix:here, for 2\n");
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client.write_all(b"question").unwrap();
    let mut served = server.accept().unwrap().0;
    served.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut question = [0; 8];
    served.read_exact(&mut question).unwrap();
    served.write_all(b"answer").unwrap();
    drop(served);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!((&question, answer.as_str()), (b"question", "answer"));
}

#[test]
fn the_example_in_c_speaks_the_same() {
    let fake = Fake::new();
    let program = fake.directory.path().join("channel");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/example/channel.c");
    let compiled = Command::new("cc")
        .args(["-Wall", "-Wextra", "-Werror", "-O2", "-o"])
        .args([program.as_os_str(), source.as_ref()])
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let socket = fake.socket("letters");
    let run = |input: &[u8]| {
        let mut child = Command::new(&program)
            .args([socket.as_os_str(), "0".as_ref(), "1".as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(input).unwrap());
            child.wait_with_output().unwrap()
        })
    };
    // One piece, one that is just full, and several: what comes back at once has to fit into sockets.
    for len in [5, 65_520, 65_521, 200_000] {
        let message = pattern(len);
        let output = run(&message);
        assert!(expect(&output, 0).contains("node 2 is beta"));
        assert!(output.stdout == message, "{len} bytes");
    }
    let refused = run(b"poison");
    assert!(expect(&refused, 1).contains("the channel was taken out (Cannot send"));
}
