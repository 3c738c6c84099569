//! Raw channels where links fail, lines are narrow and programs do not read.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use encap::id::NodeId;
use fastpath::channel::client::{Event, SendOptions, Stream, To};
use integration::config::ClusterConfig;
use integration::lanes::{Cut, Lanes};
use integration::links::{LaneDuo, links};
use integration::node::Node;
use integration::port::{PATIENCE, Port};
use integration::skip::case;
use integration::topology::Family;
use integration::{sys, wait};

use super::channel_streams::{bytes, streams};
use super::channels::{MOST_UNDER_WAY, duo, duo_on, message, number_of, send_steadily, shown};

/// A channel whose messages leave by every link.
const DOUBLED: &str = "[[channels]]\nname = \"doubled\"\nmode = \"datagram\"\ncopies = true\n";
/// Bytes of one write to a stream.
const BLOCK: usize = 16 << 10;
/// Longest pause in what arrives beside other things when a link dies. A machine that is busy makes
/// pauses of a second by itself.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Nothing comes any more when nothing came for so long.
const SILENCE: Duration = Duration::from_secs(2);
/// A line on which 3 MiB take more than a second, with a queue of 20 ms.
const NARROW: [&str; 7] = ["tbf", "rate", "20mbit", "burst", "16kb", "latency", "20ms"];

/// Cuts each link for a while, one after the other.
fn cut_in_turn(duo: &LaneDuo) -> Result<()> {
    for lane in [duo.sending()?, 1 - duo.sending()?] {
        duo.lanes.cut(lane, Cut::DropBoth)?;
        duo.wait_not_up(lane)?;
        wait::holds_for("the other link to be up", Duration::from_millis(300), || {
            duo.wait_sending(1 - lane).is_ok()
        })?;
        duo.lanes.heal(lane, Cut::DropBoth)?;
        duo.wait_all_up()?;
    }
    Ok(())
}

/// Numbers of the messages that come until there is silence, and the longest pause between two.
fn arrivals(port: &mut Port) -> Result<(Vec<u64>, Duration)> {
    let (mut numbers, mut stall, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
    while let Some(event) = port.poll(SILENCE)? {
        let Event::Message(got) = event else { continue };
        let number = number_of(&got.bytes)?;
        ensure!(got.bytes == message(number, got.bytes.len()), "message {number} changed");
        stall = stall.max(last.elapsed());
        last = Instant::now();
        numbers.push(number);
    }
    Ok((numbers, stall))
}

fn dead<T>(_: T) -> anyhow::Error {
    anyhow!("a thread died")
}

#[test]
fn flow_channel_copies_lose_no_datagram_when_a_link_fails() {
    case(|| {
        let lanes = Lanes::plain(Family::V4, 2)?;
        let config = ClusterConfig { sections: DOUBLED.to_owned(), ..lanes.config() };
        let duo = LaneDuo::with(lanes, &config)?;
        let (mut near, beta) = Port::open_to_peer(&duo.alpha, "doubled")?;
        let (mut far, _) = Port::open_to_peer(&duo.beta, "doubled")?;
        let done = &AtomicBool::new(false);
        let (sent, mut numbers) = thread::scope(|scope| {
            let enough = move |_: u64, _: &[Event]| done.load(Ordering::Relaxed);
            let sender = scope.spawn(move || send_steadily(&mut near, beta, enough));
            let receiver = scope.spawn(move || arrivals(&mut far));
            let cuts = cut_in_turn(&duo);
            done.store(true, Ordering::Relaxed);
            let sent = sender.join().map_err(dead)??;
            let (numbers, _) = receiver.join().map_err(dead)??;
            cuts.map(|()| (sent, numbers))
        })?;
        let copies: u64 = links(&duo.beta, 1)?.iter().map(|link| link.number("copies")).sum();
        eprintln!("{sent} datagrams through two cuts, {copies} came twice");
        ensure!(copies > 0, "nothing came twice");
        // They may overtake each other.
        numbers.sort_unstable();
        ensure!(numbers == (0..sent).collect::<Vec<u64>>(), "{} of {sent} arrived", numbers.len());
        Ok(())
    });
}

/// Messages that cannot arrive in time: some are on their way when the links fail, some wait.
fn let_expire(duo: &LaneDuo, channel: &str) -> Result<()> {
    let hurry = SendOptions { ttl: Some(Duration::from_millis(300)), ..SendOptions::default() };
    let (mut near, beta) = Port::open_to_peer(&duo.alpha, channel)?;
    let (mut far, _) = Port::open_to_peer(&duo.beta, channel)?;
    near.send(To::One(beta), &message(0, 200))?;
    ensure!(number_of(&far.next_message()?.bytes)? == 0, "something else came");
    for lane in [0, 1] {
        duo.lanes.cut(lane, Cut::DropBoth)?;
    }
    for number in 1..=10 {
        near.send_with(To::One(beta), hurry, &message(number, 5_000))?;
    }
    near.wait_event("the peer to be down", |e| matches!(e, Event::PeerDown(_)))?;
    for number in 11..=20 {
        near.send_with(To::One(beta), hurry, &message(number, 5_000))?;
    }
    near.send(To::One(beta), &message(21, 5_000))?;
    let count = |events: &[Event]| {
        events.iter().fold(0, |sum, event| match event {
            Event::Expired(_, count) => sum + count,
            _ => sum,
        })
    };
    while count(near.events()) < 20 {
        near.wait_event("messages to expire", |e| matches!(e, Event::Expired(..)))?;
    }
    for lane in [0, 1] {
        duo.lanes.heal(lane, Cut::DropBoth)?;
    }
    duo.wait_all_up()?;
    let in_time = SendOptions { ttl: Some(PATIENCE), ..SendOptions::default() };
    near.send_with(To::One(beta), in_time, &message(22, 5_000))?;
    let (mut numbers, _) = arrivals(&mut far)?;
    numbers.sort_unstable();
    ensure!(numbers == [21, 22], "channel {channel}: {numbers:?} arrived");
    while near.poll(Duration::ZERO)?.is_some() {}
    ensure!(count(near.events()) == 20, "told otherwise: {:?}", near.events());
    let told = shown(&duo.alpha, channel)?;
    ensure!(told["peers"][0]["expired"] == 20 && told["peers"][0]["queued_bytes"] == 0, "{told}");
    Ok(())
}

#[test]
fn flow_channel_messages_whose_time_is_over_are_told_and_later_ones_arrive() {
    case(|| {
        let duo = duo()?;
        ["messages", "parcels"].iter().try_for_each(|channel| let_expire(&duo, channel))
    });
}

#[test]
fn flow_channel_urgent_message_overtakes_on_a_narrow_line() {
    case(|| {
        let duo = duo_on(Lanes::plain(Family::V4, 1)?)?;
        let place = ["qdisc", "add", "dev", "under0", "root"];
        duo.lanes.alpha.run("tc", &[&place[..], &NARROW].concat())?;
        let (mut near, beta) = Port::open_to_peer(&duo.alpha, "parcels")?;
        let (mut far, _) = Port::open_to_peer(&duo.beta, "parcels")?;
        // Less than send_buffer_kb, so that nothing urgent waits in the socket behind it.
        let (bulk, last, first) = (100, 100, 101);
        let mut send = |number: u64, priority: u8| {
            let options = SendOptions { priority, ..SendOptions::default() };
            near.send_with(To::One(beta), options, &message(number, 32 << 10))
        };
        // What is least urgent is sent before what it has to wait for.
        send(0, 4)?;
        send(last, 7)?;
        (1..bulk).try_for_each(|number| send(number, 4))?;
        send(first, 0)?;
        let mut order = Vec::new();
        while order.len() < 102 {
            let got = far.next_message()?;
            let number = number_of(&got.bytes)?;
            ensure!(got.bytes == message(number, 32 << 10), "message {number} changed");
            order.push(number);
        }
        ensure!(order.iter().collect::<BTreeSet<_>>().len() == 102, "some came twice: {order:?}");
        let place = |number| order.iter().position(|n| *n == number).context("it did not come");
        eprintln!("of 102: the urgent one was {}, the other {}", place(first)?, place(last)?);
        ensure!(place(first)? < 30, "the urgent one waited: {order:?}");
        ensure!(place(last)? > 90, "the other did not wait: {order:?}");
        Ok(())
    });
}

/// Does something with a stream that does not block; waits while there is no room.
fn soon<T>(stream: &mut Stream, mut step: impl FnMut(&mut Stream) -> io::Result<T>) -> Result<T> {
    loop {
        match step(stream) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                ensure!(sys::writable(stream.as_fd(), PATIENCE)?, "no room within {PATIENCE:?}");
            }
            done => return done.context("writing"),
        }
    }
}

/// Writes all of it.
fn write_soon(stream: &mut Stream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let count = soon(stream, |stream| stream.write(bytes))?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    soon(stream, Stream::flush)
}

/// Reads numbered blocks to the end; gives their count and the longest pause.
fn read_blocks(stream: &mut Stream) -> Result<(u64, Duration)> {
    let (mut block, mut filled, mut count) = (vec![0; BLOCK], 0, 0);
    let (mut stall, mut last) = (Duration::ZERO, Instant::now());
    loop {
        let got = stream.read(block.get_mut(filled..).unwrap_or_default())?;
        stall = stall.max(last.elapsed());
        last = Instant::now();
        filled += got;
        if got == 0 {
            ensure!(filled == 0, "it ended within block {count}");
            return Ok((count, stall));
        }
        if filled == BLOCK {
            ensure!(block == message(count, BLOCK), "block {count} changed");
            (filled, count) = (0, count + 1);
        }
    }
}

#[test]
fn flow_channel_stream_and_messages_go_on_while_each_link_fails() {
    case(|| {
        let duo = duo()?;
        let [mut near, mut far] = streams(&duo)?;
        near.set_nonblocking(true)?;
        let (mut near_port, beta) = Port::open_to_peer(&duo.alpha, "messages")?;
        let (mut far_port, _) = Port::open_to_peer(&duo.beta, "messages")?;
        let done = &AtomicBool::new(false);
        thread::scope(|scope| {
            let enough = move |_: u64, _: &[Event]| done.load(Ordering::Relaxed);
            let messages = scope.spawn(move || send_steadily(&mut near_port, beta, enough));
            let arrivals = scope.spawn(move || arrivals(&mut far_port));
            let writer = scope.spawn(move || -> Result<_> {
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    write_soon(&mut near, &message(count, BLOCK))?;
                    count += 1;
                    // Pacing is the purpose here: nothing comes back.
                    sys::readable(near.as_fd(), Duration::from_millis(1))?;
                }
                soon(&mut near, Stream::shutdown)?;
                Ok((count, near))
            });
            let reader = scope.spawn(move || read_blocks(&mut far).map(|outcome| (outcome, far)));
            let cuts = cut_in_turn(&duo);
            done.store(true, Ordering::Relaxed);
            let sent = messages.join().map_err(dead)??;
            let (numbers, pause) = arrivals.join().map_err(dead)??;
            let (written, _near) = writer.join().map_err(dead)??;
            let ((read, stall), _far) = reader.join().map_err(dead)??;
            cuts?;
            eprintln!(
                "{sent} messages and {} MiB of a stream through two cuts, longest pauses {} and {} ms",
                (written * BLOCK as u64) >> 20,
                pause.as_millis(),
                stall.as_millis(),
            );
            ensure!(numbers == (0..sent).collect::<Vec<u64>>(), "{} of {sent}", numbers.len());
            ensure!(read == written, "{read} of {written} blocks");
            ensure!(pause.max(stall) < LONGEST_PAUSE, "pauses of {pause:?} and {stall:?}");
            Ok(())
        })
    });
}

/// Sends until there was no room for a second; gives what was sent.
fn fill(what: &str, mut send: impl FnMut() -> Result<usize>) -> Result<u64> {
    let (mut sent, mut last) = (0, Instant::now());
    let mut failure = None;
    wait::until(what, PATIENCE, || {
        loop {
            match send() {
                Ok(0) => return last.elapsed() > SILENCE,
                Ok(bytes) => (sent, last) = (sent + bytes as u64, Instant::now()),
                Err(error) => failure = Some(error),
            }
            if failure.is_some() || sent > MOST_UNDER_WAY {
                return true;
            }
        }
    })?;
    ensure!(sent <= MOST_UNDER_WAY, "nobody waits: {what}");
    failure.map_or(Ok(sent), Err)
}

/// Messages to the peer and back over a channel.
fn round_trips(duo: &LaneDuo, channel: &str) -> Result<()> {
    let (mut near, beta) = Port::open_to_peer(&duo.alpha, channel)?;
    let (mut far, alpha) = Port::open_to_peer(&duo.beta, channel)?;
    for number in 0..200 {
        near.send(To::One(beta), &message(number, 2_000))?;
        ensure!(far.next_message()?.bytes == message(number, 2_000), "{channel}: it changed");
        far.send(To::One(alpha), &message(number, 2_000))?;
        ensure!(near.next_message()?.bytes == message(number, 2_000), "{channel}: it changed");
    }
    Ok(())
}

/// A stream of 8 MiB from one end to the other.
fn another_stream(duo: &LaneDuo) -> Result<()> {
    let [mut near, mut far] = streams(duo)?;
    near.set_nonblocking(true)?;
    let sender = thread::spawn(move || {
        write_soon(&mut near, &bytes(3, 8 << 20))?;
        soon(&mut near, Stream::shutdown)?;
        anyhow::Ok(near)
    });
    let mut got = Vec::new();
    far.read_to_end(&mut got)?;
    let _near = sender.join().map_err(dead)??;
    ensure!(got == bytes(3, 8 << 20), "{} bytes, or changed", got.len());
    Ok(())
}

#[test]
fn perf_channel_programs_that_do_not_read_hold_up_nobody_else() {
    case(|| {
        let duo = duo()?;
        let before = [&duo.alpha, &duo.beta].map(Node::resident_bytes);
        let (mut port, beta): (Port, NodeId) = Port::open_to_peer(&duo.alpha, "messages")?;
        let (mut far_port, _) = Port::open_to_peer(&duo.beta, "messages")?;
        let [mut near, mut far] = streams(&duo)?;
        near.set_nonblocking(true)?;
        let mut messages = 0;
        let in_messages = fill("the sender of messages to be held", || {
            let sent = port.try_send(To::One(beta), &message(messages, 32 << 10))?;
            messages += u64::from(sent);
            Ok(if sent { 32 << 10 } else { 0 })
        })?;
        let block = bytes(4, BLOCK);
        let mut at = 0;
        let in_stream = fill("the sender of a stream to be held", || {
            match near.write(block.get(at..).unwrap_or_default()) {
                Ok(count) => {
                    at = (at + count) % BLOCK;
                    Ok(count)
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(0),
                Err(e) => Err(e.into()),
            }
        })?;
        eprintln!("held after {in_messages} bytes of messages, {in_stream} of a stream");
        ensure!(!sys::writable(port.channel().as_fd(), Duration::ZERO)?, "its socket has room");
        ensure!(!sys::writable(near.as_fd(), Duration::ZERO)?, "the stream's socket has room");
        // Those that are read go on.
        round_trips(&duo, "parcels")?;
        round_trips(&duo, "datagrams")?;
        another_stream(&duo)?;
        for (node, before) in [&duo.alpha, &duo.beta].into_iter().zip(before) {
            let grown = node.resident_bytes()?.saturating_sub(before?);
            ensure!(grown < 2 * MOST_UNDER_WAY, "{} grew by {grown} bytes", node.name());
        }
        // And nothing of the others is lost.
        for number in 0..messages {
            let got = far_port.next_message()?;
            ensure!(got.bytes == message(number, 32 << 10), "message {number} changed");
        }
        let sender = thread::spawn(move || {
            write_soon(&mut near, &[])?;
            soon(&mut near, Stream::shutdown)?;
            anyhow::Ok(near)
        });
        let mut got = Vec::new();
        far.read_to_end(&mut got)?;
        let _near = sender.join().map_err(dead)??;
        ensure!(got.len() as u64 == in_stream, "{} of {in_stream} bytes", got.len());
        ensure!(got.chunks(BLOCK).all(|chunk| block.starts_with(chunk)), "the stream changed");
        Ok(())
    });
}
