//! Raw channels of messages, as programs at two nodes use them.
//!
//! ```text
//!   program            program
//!      |  UNIX socket     |  UNIX socket
//!    alpha == 2 cables == beta
//! ```

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use encap::id::NodeId;
use fastpath::channel::client::{Event, To, hand_over};
use fastpath::channel::framing::Code;
use integration::config::ClusterConfig;
use integration::lanes::{Cut, LaneSpec, Lanes};
use integration::links::LaneDuo;
use integration::node::Node;
use integration::port::{PATIENCE, Port};
use integration::skip::case;
use integration::stats::Random;
use integration::sys;
use integration::topology::Family;
use integration::wait;
use serde_json::Value;

/// One channel of each mode.
pub(crate) const CHANNELS: &str = "
[[channels]]
name = \"datagrams\"
mode = \"datagram\"

[[channels]]
name = \"messages\"
mode = \"message\"

[[channels]]
name = \"parcels\"
mode = \"unordered\"

[[channels]]
name = \"streams\"
mode = \"stream\"
";
/// Bytes of the longest message of a reliable channel.
const LONGEST: usize = 16 << 20;
/// Bytes of the longest datagram.
const LONGEST_DATAGRAM: usize = 64 << 10;
/// Longest pause in what a channel delivers when a link dies.
const LONGEST_STALL: Duration = Duration::from_secs(1);
/// Bytes that may be under way to a program that does not read: what is kept for a peer, what the
/// other node takes meanwhile, and what sockets hold, with room to spare.
pub(crate) const MOST_UNDER_WAY: u64 = 64 << 20;

pub(crate) fn duo_on(lanes: Lanes) -> Result<LaneDuo> {
    let config = ClusterConfig { sections: CHANNELS.to_owned(), ..lanes.config() };
    LaneDuo::with(lanes, &config)
}

pub(crate) fn duo() -> Result<LaneDuo> {
    duo_on(Lanes::plain(Family::V4, 2)?)
}

/// Bytes that tell what they are: a number, and filling that depends on it.
pub(crate) fn message(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Random::new(number).fill(&mut bytes);
    if let Some(first) = bytes.first_chunk_mut() {
        *first = number.to_le_bytes();
    }
    bytes
}

pub(crate) fn number_of(bytes: &[u8]) -> Result<u64> {
    bytes.first_chunk().map(|first| u64::from_le_bytes(*first)).context("a message without number")
}

/// What `tapd show channels` says of a channel.
pub(crate) fn shown(node: &Node, channel: &str) -> Result<Value> {
    let reply = node.show("channels")?;
    let list = reply["channels"].as_array().context("no channels")?;
    let found = list.iter().find(|entry| entry["name"] == channel).cloned();
    found.with_context(|| format!("no {channel} in {reply}"))
}

#[test]
fn flow_channel_datagrams_come_back() {
    case(|| {
        let duo = duo()?;
        let (mut near, beta) = Port::open_to_peer(&duo.alpha, "datagrams")?;
        let (mut far, alpha) = Port::open_to_peer(&duo.beta, "datagrams")?;
        ensure!((alpha.get(), beta.get()) == (1, 2), "{alpha:?} {beta:?}");
        for (number, length) in
            (0..).zip([8, 64, 1400, 9000, 65_519, 65_520, 65_521, LONGEST_DATAGRAM])
        {
            let sent = message(number, length);
            near.send(To::One(beta), &sent)?;
            let there = far.next_message()?;
            ensure!(there.from == alpha && there.bytes == sent, "{length} bytes changed");
            far.send(To::One(alpha), &there.bytes)?;
            ensure!(near.next_message()?.bytes == sent, "{length} bytes changed on the way back");
        }
        let told = shown(&duo.alpha, "datagrams")?;
        ensure!(told["mode"] == "datagram" && told["receiving"] == true, "{told}");
        ensure!(told["peers"][0]["tx_messages"] == 8, "{told}");
        ensure!(told["peers"][0]["rx_messages"] == 8, "{told}");
        Ok(())
    });
}

#[test]
fn flow_channel_message_of_16_mib_is_byte_exact() {
    case(|| {
        let duo = duo()?;
        for channel in ["messages", "parcels"] {
            let (mut near, beta) = Port::open_to_peer(&duo.alpha, channel)?;
            let (mut far, _) = Port::open_to_peer(&duo.beta, channel)?;
            let sent = message(7, LONGEST);
            let copy = sent.clone();
            // Both at once: neither tapd nor the sockets hold all of it.
            let sender = std::thread::spawn(move || near.send(To::One(beta), &sent).map(|()| near));
            let got = far.next_message()?;
            let near = sender.join().map_err(|_| anyhow::anyhow!("the sender died"))??;
            ensure!(got.bytes.len() == LONGEST, "{} bytes", got.bytes.len());
            ensure!(got.bytes == copy, "16 MiB changed on channel {channel}");
            ensure!(near.channel().welcome().max_len as usize == LONGEST, "another limit is told");
        }
        Ok(())
    });
}

/// Sends a numbered message each millisecond until `enough` says so; reads events meanwhile.
pub(crate) fn send_steadily(
    port: &mut Port,
    to: NodeId,
    mut enough: impl FnMut(u64, &[Event]) -> bool,
) -> Result<u64> {
    let mut number = 0;
    while !enough(number, port.events()) {
        port.send(To::One(to), &message(number, 200))?;
        number += 1;
        // Pacing is the purpose here: nothing comes back but events.
        port.poll(Duration::from_millis(1))?;
    }
    Ok(number)
}

#[test]
fn flow_channel_messages_go_on_through_a_cut() {
    case(|| {
        let duo = duo()?;
        let (mut near, beta) = Port::open_to_peer(&duo.alpha, "messages")?;
        let (mut far, _) = Port::open_to_peer(&duo.beta, "messages")?;
        let begin = Instant::now();
        let until =
            |span: u64| move |_: u64, _: &[Event]| begin.elapsed() > Duration::from_secs(span);
        let (sent, stall) = std::thread::scope(|scope| {
            let sender = scope.spawn(move || send_steadily(&mut near, beta, until(5)));
            let receiver = scope.spawn(move || -> Result<_> {
                let (mut stall, mut last, mut count) = (Duration::ZERO, Instant::now(), 0);
                // Until nothing comes any more.
                while let Some(event) = far.poll(Duration::from_secs(3))? {
                    let Event::Message(got) = event else { continue };
                    ensure!(number_of(&got.bytes)? == count, "{count} was due: {:?}", got.bytes);
                    ensure!(got.bytes == message(count, 200), "message {count} changed");
                    stall = stall.max(last.elapsed());
                    (last, count) = (Instant::now(), count + 1);
                }
                Ok((count, stall))
            });
            let cuts = || -> Result<()> {
                for lane in [duo.sending()?, 1 - duo.sending()?] {
                    duo.lanes.cut(lane, Cut::DropBoth)?;
                    duo.wait_not_up(lane)?;
                    wait::holds_for("the other link to be up", Duration::from_millis(500), || {
                        duo.wait_sending(1 - lane).is_ok()
                    })?;
                    duo.lanes.heal(lane, Cut::DropBoth)?;
                    duo.wait_all_up()?;
                }
                Ok(())
            };
            cuts()?;
            let dead = || anyhow::anyhow!("a thread died");
            let sent = sender.join().map_err(|_| dead())??;
            let (count, stall) = receiver.join().map_err(|_| dead())??;
            ensure!(count == sent, "{count} of {sent} arrived");
            anyhow::Ok((sent, stall))
        })?;
        eprintln!("{sent} messages through two cuts, longest pause {} ms", stall.as_millis());
        ensure!(stall < LONGEST_STALL, "a pause of {stall:?}");
        Ok(())
    });
}

/// Two nodes on a cable that loses, doubles and reorders.
fn bad_cable() -> Result<LaneDuo> {
    let duo = duo_on(Lanes::new(&[LaneSpec::new(Family::V4).relayed()])?)?;
    let Some(relay) = &duo.lanes.lane(0)?.relay else { bail!("no relay") };
    for way in relay.both() {
        way.set_loss(0.03);
        way.set_duplication(0.03);
        way.set_reordering(0.05, Duration::from_millis(2));
    }
    Ok(duo)
}

/// Messages of many lengths over a bad cable; gives the order in which they arrived.
fn over_a_bad_cable(channel: &str, count: u64) -> Result<Vec<u64>> {
    let duo = bad_cable()?;
    let (mut near, beta) = Port::open_to_peer(&duo.alpha, channel)?;
    let (mut far, _) = Port::open_to_peer(&duo.beta, channel)?;
    let length = |number: u64| 8 + (number * 7919 % 20_000) as usize;
    let order = std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            (0..count).try_for_each(|number| {
                near.send(To::One(beta), &message(number, length(number)))
            })?;
            anyhow::Ok(near)
        });
        let mut order = Vec::new();
        for _ in 0..count {
            let got = far.next_message()?;
            let number = number_of(&got.bytes)?;
            ensure!(got.bytes == message(number, length(number)), "message {number} changed");
            order.push(number);
        }
        ensure!(far.poll(Duration::from_millis(300))?.is_none(), "more came than was sent");
        sender.join().map_err(|_| anyhow::anyhow!("the sender died"))??;
        anyhow::Ok(order)
    })?;
    let path = &duo.alpha.show("channels")?["paths"][0];
    ensure!(path["lost"].as_u64() > Some(0), "nothing was lost on the way: {path}");
    Ok(order)
}

#[test]
fn flow_channel_messages_stay_in_order_over_a_bad_cable() {
    case(|| {
        let order = over_a_bad_cable("messages", 2_000)?;
        ensure!(order == (0..2_000).collect::<Vec<u64>>(), "not in order");
        Ok(())
    });
}

#[test]
fn flow_channel_unordered_messages_arrive_once_each_over_a_bad_cable() {
    case(|| {
        let order = over_a_bad_cable("parcels", 2_000)?;
        let all: BTreeSet<u64> = order.iter().copied().collect();
        ensure!(all.len() == 2_000 && all.last() == Some(&1_999), "{} of 2000", all.len());
        ensure!(!order.is_sorted(), "nobody waited for nobody: this cable reorders");
        Ok(())
    });
}

#[test]
fn flow_channel_restart_of_a_peer_is_told_and_nothing_comes_twice() {
    case(|| {
        let mut duo = duo()?;
        let (mut near, beta) = Port::open_to_peer(&duo.alpha, "messages")?;
        let (mut far, _) = Port::open_to_peer(&duo.beta, "messages")?;
        let epochs = |events: &[Event]| {
            events.iter().filter(|event| matches!(event, Event::Epoch(..))).count()
        };
        let sender = std::thread::spawn(move || {
            let (begin, mut since) = (Instant::now(), None);
            // And a few more after it was told.
            let enough = move |number: u64, events: &[Event]| {
                if epochs(events) > 0 {
                    since.get_or_insert(number);
                }
                since.is_some_and(|at| number > at + 500) || begin.elapsed() > PATIENCE * 2
            };
            send_steadily(&mut near, beta, enough).map(|_| near)
        });
        let mut first = Vec::new();
        while first.len() < 300 {
            first.push(number_of(&far.next_message()?.bytes)?);
        }
        duo.beta.kill();
        // What tapd had handed over before is in the socket still.
        while let Ok(Some(event)) = far.poll(Duration::from_secs(1)) {
            if let Event::Message(got) = event {
                first.push(number_of(&got.bytes)?);
            }
        }
        duo.beta.restart()?;
        duo.beta.wait_ready()?;
        let (mut far, _) = Port::open_to_peer(&duo.beta, "messages")?;
        let mut second = Vec::new();
        while second.len() < 400 {
            second.push(number_of(&far.next_message()?.bytes)?);
        }
        let near = sender.join().map_err(|_| anyhow::anyhow!("the sender died"))??;
        ensure!(epochs(near.events()) == 1, "the restart is not told once: {:?}", near.events());
        ensure!(first.is_sorted_by(|a, b| a < b), "the first life: {first:?}");
        ensure!(second.is_sorted_by(|a, b| a < b), "the second life: {second:?}");
        ensure!(first.last() < second.first(), "{:?} twice or late", second.first());
        Ok(())
    });
}

#[test]
fn perf_channel_holds_the_sender_of_a_program_that_does_not_read() {
    case(|| {
        let duo = duo()?;
        let (mut near, beta) = Port::open_to_peer(&duo.alpha, "messages")?;
        let (mut far, _) = Port::open_to_peer(&duo.beta, "messages")?;
        let before = [&duo.alpha, &duo.beta].map(Node::resident_bytes);
        let mut sent = 0;
        // Until there was no room for a second.
        let mut last = Instant::now();
        wait::until("the sender to be held", PATIENCE, || {
            while matches!(near.try_send(To::One(beta), &message(sent, 32 << 10)), Ok(true)) {
                (sent, last) = (sent + 1, Instant::now());
                if sent * (32 << 10) > MOST_UNDER_WAY {
                    return true;
                }
            }
            last.elapsed() > Duration::from_secs(1)
        })?;
        ensure!(sent * (32 << 10) <= MOST_UNDER_WAY, "nobody held the sender");
        ensure!(!sys::writable(near.channel().as_fd(), Duration::ZERO)?, "its socket has room");
        for (node, before) in [&duo.alpha, &duo.beta].into_iter().zip(before) {
            let grown = node.resident_bytes()?.saturating_sub(before?);
            ensure!(grown < MOST_UNDER_WAY, "{} grew by {grown} bytes", node.name());
        }
        for number in 0..sent {
            ensure!(
                far.next_message()?.bytes == message(number, 32 << 10),
                "message {number} changed"
            );
        }
        near.send(To::One(beta), b"12345678 there is room again")?;
        ensure!(far.next_message()?.bytes.ends_with(b"again"), "something else came");
        Ok(())
    });
}

#[test]
fn api_channel_has_one_receiver_at_a_time() {
    case(|| {
        let duo = duo()?;
        let first = Port::open(&duo.alpha, "messages", true)?;
        let Err(refused) = Port::open(&duo.alpha, "messages", true) else {
            bail!("a second program gets the messages")
        };
        ensure!(refused.kind() == ErrorKind::ResourceBusy, "{refused:?}");
        Port::open(&duo.alpha, "messages", false).context("to send only")?;
        drop(first);
        wait::until("the place to be free again", PATIENCE, || {
            Port::open(&duo.alpha, "messages", true).is_ok()
        })
    });
}

#[test]
fn api_channel_refuses_a_node_that_is_no_peer_and_says_so() {
    case(|| {
        let duo = duo()?;
        let mut port = Port::open(&duo.alpha, "messages", false)?;
        port.send(To::One(NodeId::new(77).context("an id")?), b"to nobody")?;
        let event = port.wait_event("to be refused", |e| matches!(e, Event::Error(_)))?;
        let Event::Error(refusal) = event else { bail!("{event:?}") };
        ensure!(refusal.code == Some(Code::NoPeer), "{refusal:?}");
        ensure!(refusal.text.contains("peer"), "the text does not say why: {}", refusal.text);
        ensure!(port.poll(PATIENCE).is_err(), "the connection goes on");
        let told = shown(&duo.alpha, "messages")?;
        ensure!(told["counters"]["protocol_errors"] == 1, "{told}");
        Ok(())
    });
}

#[test]
fn flow_channel_carries_a_socket_that_was_handed_over() {
    case(|| {
        let duo = duo()?;
        let pairs = [UnixDatagram::pair()?, UnixDatagram::pair()?];
        let [(near, near_tapd), (far, far_tapd)] = pairs;
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        let hand = |node: &Node, socket: &UnixDatagram| {
            let mut lifeline = hand_over(&node.channel("messages"), socket.as_fd(), None, true)?;
            lifeline.set_read_timeout(Some(PATIENCE))?;
            // To all that can be reached: until then that is nobody.
            while !matches!(lifeline.recv()?, Event::PeerUp(..)) {}
            anyhow::Ok(lifeline)
        };
        let _lifelines = [hand(&duo.alpha, &near_tapd)?, hand(&duo.beta, &far_tapd)?];
        let mut buffer = vec![0; LONGEST_DATAGRAM];
        for (from, to) in [(&near, &far), (&far, &near)] {
            for number in 0..20 {
                let sent = message(number, 8 + 1000 * number as usize);
                from.send(&sent)?;
                let length = to.recv(&mut buffer)?;
                ensure!(buffer.get(..length) == Some(&sent[..]), "packet {number} changed");
            }
        }
        Ok(())
    });
}

/// User and system time in ticks of 10 ms: fields 14 and 15 of /proc/PID/stat.
fn ticks(node: &Node) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid()))?;
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    Ok(fields.split(' ').skip(11).take(2).flat_map(str::parse::<u64>).sum())
}

#[test]
fn api_channel_that_a_node_does_not_have_is_refused_and_it_rests() {
    case(|| {
        let mut duo = duo()?;
        // Beta comes back without any channel.
        let bare = ClusterConfig { sections: String::new(), ..duo.lanes.config() };
        duo.dir.write(&bare)?;
        duo.beta.kill();
        duo.beta.restart()?;
        duo.beta.wait_ready()?;
        duo.alpha.wait_peer_up(2)?;
        let (mut near, beta) = Port::open_to_peer(&duo.alpha, "messages")?;
        near.send(To::One(beta), b"is anybody there?")?;
        let refused = || {
            let shown = shown(&duo.alpha, "messages");
            shown.is_ok_and(|channel| channel["peers"][0]["state"] == "refused")
        };
        wait::until("the channel is refused", PATIENCE, refused)?;
        let (before, span) = (ticks(&duo.beta)?, Duration::from_secs(2));
        wait::holds_for("beta is there", span, || duo.beta.pid() > 0)?;
        let used = ticks(&duo.beta)? - before;
        ensure!(used < 40, "{used} ticks of CPU time in {span:?}: it does not block when idle");
        Ok(())
    });
}
