//! The client's side and the daemon's side together, with a thread that turns the world.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use encap::wire::channel::Mode;
use socket2::{Domain, Socket, Type};

use super::world::{Node, World, node, pattern};
use crate::channel::client::{Channel, Event, SendOptions, Stream, To, hand_over};
use crate::wake::PollSet;

/// Nothing that a test waits for takes so long.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long a timer of a hub may be late.
const TIMER: Duration = Duration::from_micros(200);
const MESSAGE_LEN: usize = 16 << 20;

/// A world that turns by itself, in real time, until it is dropped.
struct Turning {
    paths: [PathBuf; 2],
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Turning {
    fn new(mode: Mode) -> Self {
        let mut world = World::new(mode);
        let paths = [0, 1].map(|on: usize| world.nodes[on].path());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut set = PollSet::default();
            set.set(world.nodes.iter().map(|node| node.sockets.fd()));
            while !stopped.load(Ordering::Relaxed) {
                // Programs have a time of their own, so this world has theirs.
                world.now = Instant::now();
                if world.act() == 0 && !world.nodes.iter().any(Node::is_busy) {
                    set.wait(TIMER);
                }
            }
        });
        Self { paths, stop, thread: Some(thread) }
    }

    fn channel(&self, on: usize) -> Channel {
        let channel = Channel::connect(&self.paths[on], true).unwrap();
        channel.set_read_timeout(Some(TIMEOUT)).unwrap();
        channel
    }
}

impl Drop for Turning {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn message(channel: &mut Channel) -> Vec<u8> {
    loop {
        if let Event::Message(message) = channel.recv().unwrap() {
            return message.bytes;
        }
    }
}

#[test]
fn messages_pass_from_client_to_client() {
    let world = Turning::new(Mode::Ordered);
    let (mut a, mut b) = (world.channel(0), world.channel(1));
    assert_eq!((a.welcome().own, b.welcome().own), (node(1), node(2)));
    let long = pattern(MESSAGE_LEN);
    a.send(To::One(node(2)), SendOptions::default(), &long).unwrap();
    a.send(To::Each(&[node(2)]), SendOptions::default(), b"short").unwrap();
    assert!(message(&mut b) == long);
    assert_eq!(message(&mut b), b"short");
    b.send(To::All, SendOptions::default(), &long).unwrap();
    assert!(message(&mut a) == long);
    // Who has sent all hears that it has arrived.
    b.finish().unwrap();
    let lost = loop {
        if let Event::Closed(lost) = b.recv().unwrap() {
            break lost;
        }
    };
    assert_eq!(lost, 0);
    assert_eq!(b.recv().unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_descriptor_that_a_client_hands_over_carries_messages() {
    let world = Turning::new(Mode::Unreliable);
    let mut b = world.channel(1);
    let (mine, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    mine.set_read_timeout(Some(TIMEOUT)).unwrap();
    let _lifeline = hand_over(&world.paths[0], theirs.as_fd(), Some(node(2)), true).unwrap();
    mine.send(b"out").unwrap();
    assert_eq!(message(&mut b), b"out");
    b.send(To::One(node(1)), SendOptions::default(), b"in").unwrap();
    let mut room = [0; 8];
    assert_eq!((&mine).read(&mut room).unwrap(), 2);
}

#[test]
fn streams_pass_from_client_to_client() {
    let world = Turning::new(Mode::Stream);
    let path = world.paths[1].clone();
    let echo = std::thread::spawn(move || {
        let mut stream = Stream::accept(&path).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        stream.shutdown().unwrap();
        stream.wait_closed().unwrap();
    });
    let mut stream = Stream::connect(&world.paths[0], node(2)).unwrap();
    let sent = pattern(MESSAGE_LEN);
    stream.write_all(&sent).unwrap();
    stream.shutdown().unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert!(received == sent);
    stream.wait_closed().unwrap();
    echo.join().unwrap();
}
