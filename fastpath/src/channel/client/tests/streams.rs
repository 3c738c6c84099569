//! Channels of streams.

use std::io::{self, ErrorKind, Read, Write};
use std::thread;

use socket2::Type;

use super::super::*;
use super::{Connection, TIMEOUT, Tapd, node, pattern};
use crate::channel::framing::HEADER_LEN;

/// Answers CONNECT with a stream.
fn take_stream(connection: &mut Connection) {
    let (request, _) = connection.read();
    assert_eq!((request.kind, request.peer), (Kind::Connect, 2));
    connection.event(Kind::Connected, 2, 0, b"");
}

#[test]
fn streams_carry_bytes_both_ways() {
    let tapd = Tapd::new(Type::STREAM);
    let sent = pattern(3_000_000);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = tapd.welcome(Mode::Stream);
            connection.event(Kind::PeerUp, 2, 0, b"beta");
            take_stream(&mut connection);
            loop {
                let (header, payload) = connection.read();
                if header.kind == Kind::Fin {
                    break;
                }
                assert_eq!(header.kind, Kind::Data);
                connection.event(Kind::Data, 2, 0, &payload);
                connection.event(Kind::PeerDown, 3, 0, b"");
                connection.event(Kind::Data, 2, 0, b"");
            }
            connection.event(Kind::Fin, 2, 0, b"");
            connection.event(Kind::PeerDown, 2, 0, b"");
            connection.event(Kind::Closed, 2, 0, b"");
        });
        let mut channel = StreamChannel::connect(&tapd.path()).unwrap();
        assert_eq!(channel.welcome().name, "blue");
        assert_eq!(channel.recv().unwrap(), Event::PeerUp(node(2), "beta".into()));
        let stream = channel.open(node(2)).unwrap();
        assert_eq!(stream.peer(), node(2));
        let (mut reader, mut writer) = stream.into_split();
        let bytes = &sent;
        scope.spawn(move || {
            let mut rest = &bytes[..];
            // Records of many lengths.
            let mut len = 1;
            while !rest.is_empty() {
                let (now, later) = rest.split_at(len.min(rest.len()));
                writer.write_all(now).unwrap();
                (rest, len) = (later, len * 3 % 400_009 + 1);
            }
            writer.shutdown().unwrap();
            writer.shutdown().unwrap();
            assert_eq!(writer.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        });
        let mut came = Vec::new();
        let mut buffer = vec![0; 50_000];
        loop {
            let room = came.len() % 49_999 + 1;
            match reader.read(&mut buffer[..room]).unwrap() {
                0 => break,
                len => came.extend_from_slice(&buffer[..len]),
            }
        }
        assert!(came == sent);
        reader.wait_closed().unwrap();
        reader.wait_closed().unwrap();
    });
}

#[test]
fn records_of_streams_may_come_in_any_cut() {
    let tapd = Tapd::new(Type::STREAM);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = tapd.welcome(Mode::Stream);
            assert_eq!(connection.read().0.kind, Kind::Accept);
            let mut all = Vec::new();
            let connected = Header::event(Kind::Connected, node(4), 0, 0);
            let up = Header::event(Kind::PeerUp, node(4), 0, 5);
            let data = Header::event(Kind::Data, node(4), 0, 3);
            all.extend(connected.encode());
            for _ in 0..3 {
                all.extend([&up.encode()[..], b"delta", &data.encode(), b"abc"].concat());
            }
            all.extend(Header::new(Kind::Fin).encode());
            all.extend(Header::new(Kind::Closed).encode());
            for byte in all {
                connection.socket.send(&[byte]).unwrap();
            }
        });
        let mut stream = Stream::accept(&tapd.path()).unwrap();
        assert_eq!(stream.peer(), node(4));
        let mut came = String::new();
        stream.read_to_string(&mut came).unwrap();
        assert_eq!(came, "abcabcabc");
        stream.wait_closed().unwrap();
    });
}

#[test]
fn streams_are_reset() {
    let tapd = Tapd::new(Type::STREAM);
    let reset =
        |code: Code, number| Header { code: code.number(), number, ..Header::new(Kind::Reset) };
    for (code, expected) in [
        (Code::NobodyAccepts, ErrorKind::ConnectionRefused),
        (Code::NoChannel, ErrorKind::NotFound),
        (Code::PeerGone, ErrorKind::HostUnreachable),
    ] {
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut connection = tapd.welcome(Mode::Stream);
                assert_eq!(connection.read().0.kind, Kind::Connect);
                connection.send(reset(code, 0), b"");
            });
            let error = Stream::connect(&tapd.path(), node(2)).unwrap_err();
            assert_eq!(error.kind(), expected, "{error}");
        });
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = tapd.welcome(Mode::Stream);
            take_stream(&mut connection);
            connection.event(Kind::Data, 2, 0, b"x");
            connection.send(reset(Code::Reset, 77), b"");
        });
        let mut stream = Stream::connect(&tapd.path(), node(2)).unwrap();
        let mut came = Vec::new();
        let error = stream.read_to_end(&mut came).unwrap_err();
        assert_eq!((came, error.kind()), (b"x".to_vec(), ErrorKind::ConnectionReset));
        let reset = error.downcast::<StreamReset>().unwrap();
        assert_eq!(reset, StreamReset { code: Some(Code::Reset), number: 77 });
    });
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut connection = tapd.welcome(Mode::Stream);
            take_stream(&mut connection);
            connection
        });
        let stream = Stream::connect(&tapd.path(), node(2)).unwrap();
        let mut connection = server.join().unwrap();
        stream.reset(5).unwrap();
        let (header, _) = connection.read();
        assert_eq!((header.kind, header.number), (Kind::Reset, 5));
        assert_eq!(connection.socket.read(&mut [0; 1]).unwrap(), 0);
    });
}

#[test]
fn streams_do_not_wait_when_told_so() {
    let tapd = Tapd::new(Type::STREAM);
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut connection = tapd.welcome(Mode::Stream);
            take_stream(&mut connection);
            connection
        });
        let mut stream = Stream::connect(&tapd.path(), node(2)).unwrap();
        let mut connection = server.join().unwrap();
        stream.set_nonblocking(true).unwrap();
        let would_block = |result: io::Result<usize>| {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::WouldBlock);
        };
        would_block(stream.read(&mut [0; 8]));
        let bytes = pattern(1 << 20);
        let mut written = 0;
        let full = loop {
            match stream.write(&bytes[written..]) {
                Ok(count) => written += count,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        assert!(stream.wants_write(), "the last record is not all sent");
        assert!(written < bytes.len());
        would_block(stream.shutdown().map(|()| 0));
        let reader = scope.spawn(move || {
            let mut came = Vec::new();
            loop {
                match connection.read() {
                    (header, payload) if header.kind == Kind::Data => came.extend(payload),
                    (header, _) => break (header.kind, came),
                }
            }
        });
        stream.set_nonblocking(false).unwrap();
        stream.flush().unwrap();
        stream.shutdown().unwrap();
        let (kind, came) = reader.join().unwrap();
        assert_eq!(kind, Kind::Fin);
        assert!(came == bytes[..written]);
    });
}

#[test]
fn streams_know_whether_their_peer_can_be_reached() {
    let tapd = Tapd::new(Type::STREAM);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = tapd.welcome(Mode::Stream);
            take_stream(&mut connection);
            // Until then nothing comes.
            assert_eq!(connection.read().1, b"go");
            for (kind, peer, name) in [
                (Kind::PeerDown, 3, &b""[..]),
                (Kind::PeerDown, 2, b""),
                (Kind::PeerUp, 3, b"gamma"),
                (Kind::PeerUp, 2, b"beta"),
                (Kind::PeerDown, 2, b""),
            ] {
                connection.event(kind, peer, 0, name);
                connection.event(Kind::Data, 2, 0, b"x");
            }
        });
        let mut stream = Stream::connect(&tapd.path(), node(2)).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(b"go").unwrap();
        let (mut reader, _writer) = stream.into_split();
        assert!(!reader.is_cut_off());
        let told = [false, true, true, false, true].map(|expected| {
            reader.read_exact(&mut [0; 1]).unwrap();
            reader.is_cut_off() == expected
        });
        assert_eq!(told, [true; 5]);
    });
}

#[test]
fn ends_and_nonsense_of_streams_are_errors() {
    let tapd = Tapd::new(Type::STREAM);
    let long = Header { length: 1 << 30, ..Header::event(Kind::Data, node(2), 0, 0) };
    let error = Header { code: Code::Closed.number(), length: 4, ..Header::new(Kind::Error) };
    let cases: [(Vec<u8>, ErrorKind); 7] = [
        (vec![], ErrorKind::UnexpectedEof),
        (vec![2, 0, 0], ErrorKind::UnexpectedEof),
        (Header { length: 9, ..long }.encode().to_vec(), ErrorKind::UnexpectedEof),
        (long.encode().to_vec(), ErrorKind::InvalidData),
        (Header { kind: Kind::PeerUp, ..long }.encode().to_vec(), ErrorKind::InvalidData),
        (vec![0xff; HEADER_LEN], ErrorKind::InvalidData),
        ([&error.encode()[..], b"over"].concat(), ErrorKind::ConnectionAborted),
    ];
    for (bytes, expected) in cases {
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut connection = tapd.welcome(Mode::Stream);
                take_stream(&mut connection);
                connection.socket.write_all(&bytes).unwrap();
            });
            let mut stream = Stream::connect(&tapd.path(), node(2)).unwrap();
            let error = io::copy(&mut stream, &mut io::sink()).unwrap_err();
            assert_eq!(error.kind(), expected, "{bytes:?}");
        });
    }
}

/// tapd is killed in the last moment: what was written may not have arrived.
#[test]
fn an_end_without_a_word_is_not_taken_for_the_end_of_a_stream() {
    let tapd = Tapd::new(Type::STREAM);
    for unread in [false, true] {
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut connection = tapd.welcome(Mode::Stream);
                take_stream(&mut connection);
                // With something unread the kernel resets the connection.
                while !unread && connection.read().0.kind != Kind::Fin {}
                connection.event(Kind::Fin, 2, 0, b"");
            });
            let mut stream = Stream::connect(&tapd.path(), node(2)).unwrap();
            // Where tapd is gone already, reading says so.
            let _ = stream.write_all(b"x").and_then(|()| stream.shutdown());
            let error = stream.wait_closed().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
            assert!(error.to_string().contains("lost"), "{error}");
        });
    }
}
