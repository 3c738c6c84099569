//! The commands that use channels.

use std::path::PathBuf;

use clap::Args;

use super::SocketArgs;

pub(super) const SEND_HELP: &str = "\
A channel of messages gets one message: all of FILE, or of standard input; with --lines one for each \
line, without its line end. The command ends when the nodes' tapd have everything, and waits for \
those that are down or have no such channel. Exit code 1 means that messages may not have arrived, \
and says why: they were given up, no node was there to take them, or tapd was killed. The time of \
--ttl ends when the node's tapd has the message: waiting for a program there does not count. Where \
the mode is datagram, the command ends when tapd has taken everything, --priority is without effect, \
and messages whose time is over are counted only (tapd show channels).

A channel of streams gets one stream: standard input goes to the program that accepts it there, \
what that one answers comes on standard output. The command ends when both sides have ended and \
everything has arrived; a stream that is given up is exit code 1.

Nodes are named by name or id. What the command waits for is said on standard error after 2 s. \
Without --timeout it waits without end; with it, exit code 7 says that a wait was longer: for the \
node to be up, for it to take something, or for its word at the end that it has everything. What \
tapd had taken by then may arrive all the same; a stream is given up. Waiting for input does not \
count.

Examples:
  tapd send alerts --to all <<< \"disk is full\"
  journalctl -f | tapd send logs --to beta --lines
  tapd send frames --to 2 --priority 7 --ttl 40 picture.jpg
  tar c /srv | tapd send backup --to beta          # there: tapd recv backup | tar x -C /";

pub(super) const RECV_HELP: &str = "\
Messages are written as they are, with nothing between them, unless told otherwise. One program at a \
time gets the messages of a channel. Whatever tapd had handed over already when this command ends, \
also after --count, is lost: read on and choose, rather than begin again and again.

From a channel of streams one stream is taken and written; then the command ends. A stream that is \
given up is exit code 1.

Examples:
  tapd recv alerts --lines --from                  beta<TAB>disk is full
  tapd recv logs --null --events | xargs -0 -n1 logger
  tapd recv frames --count 1 > picture.jpg
  tapd recv backup | tar x -C /";

pub(super) const FORWARD_HELP: &str = "\
Every connection goes over a stream of its own. The end of one side is the end of that side there, \
and a connection that is reset is reset there (a UNIX socket has no reset: it is closed). At most \
60 connections are carried at once; more wait until one ends.

The channel is one of mode = \"stream\". ADDR is HOST:PORT, or unix:PATH for a UNIX socket. When it \
listens, a line on standard error says where, and another one what a connection waits for, if that \
takes longer than 2 s.

Examples:
  on beta   tapd forward db --connect 127.0.0.1:5432
  on alpha  tapd forward db --listen 127.0.0.1:5432 --to beta
            psql -h 127.0.0.1

  on beta   tapd forward sync --connect 127.0.0.1:873
  on alpha  tapd forward sync --listen unix:/run/sync.sock --to beta";

/// Which channel.
#[derive(Debug, Args)]
pub(crate) struct ChannelArgs {
    /// The channel: its name, or the path of its socket (with a /)
    #[arg(value_name = "CHANNEL")]
    pub(crate) name: String,
    /// The channel's socket [default: as the daemon says, or tapd-channels/CHANNEL beside the control socket]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Where the daemon listens.
    #[command(flatten)]
    pub(crate) control: SocketArgs,
}

/// `tapd send`.
#[derive(Debug, Args)]
pub(crate) struct SendArgs {
    /// Where to.
    #[command(flatten)]
    pub(crate) channel: ChannelArgs,
    /// Node, by name or id; all is every node that can be reached
    #[arg(long, value_name = "NODE|all")]
    pub(crate) to: String,
    /// From 0 (first) to 7 (last); only in mode unordered one leaves before others [default: 0]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=7))]
    pub(crate) priority: Option<u8>,
    /// Give messages up that the node's tapd does not have after so many milliseconds
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) ttl: Option<u32>,
    /// One message for each line
    #[arg(long)]
    pub(crate) lines: bool,
    /// Give up when the node does not come up or takes nothing for so many seconds; once all was
    /// read, what is still in tapd's buffer has to arrive within that, and the program there to end
    /// its side of a stream [default: wait without end]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u32>,
    /// What to send, or - for standard input
    #[arg(value_name = "FILE|-", default_value = "-")]
    pub(crate) file: PathBuf,
}

/// `tapd recv`.
#[derive(Debug, Args)]
pub(crate) struct RecvArgs {
    /// Where from.
    #[command(flatten)]
    pub(crate) channel: ChannelArgs,
    /// End after so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Write the sender's name and a tab before each message
    #[arg(long)]
    pub(crate) from: bool,
    /// Write a line end after each message
    #[arg(long, group = "format")]
    pub(crate) lines: bool,
    /// Write a byte 0 after each message
    #[arg(long, group = "format")]
    pub(crate) null: bool,
    /// Write the length in bytes as a line of its own before each message
    #[arg(long, group = "format")]
    pub(crate) length: bool,
    /// Tell on standard error what happens to peers
    #[arg(long)]
    pub(crate) events: bool,
}

/// `tapd forward`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("side").required(true))]
pub(crate) struct ForwardArgs {
    /// The channel, of streams.
    #[command(flatten)]
    pub(crate) channel: ChannelArgs,
    /// Take connections there and carry them to a node
    #[arg(long, value_name = "ADDR", group = "side", requires = "to")]
    pub(crate) listen: Option<String>,
    /// The node, by name or id
    #[arg(long, value_name = "NODE", conflicts_with = "connect")]
    pub(crate) to: Option<String>,
    /// Take what other nodes carry here and connect it there
    #[arg(long, value_name = "ADDR", group = "side")]
    pub(crate) connect: Option<String>,
    /// Seconds that each connection waits for the node to be up, then for its answer, or for ADDR
    /// to answer [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command};
    use clap::Parser;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn what_is_sent_is_checked() {
        let parsed = parse("tapd send logs --to all --priority 7 --ttl 40 --lines x").unwrap();
        let Command::Send(args) = parsed.command else { panic!() };
        assert_eq!((args.priority, args.ttl, args.lines), (Some(7), Some(40), true));
        assert_eq!((args.to.as_str(), args.file.to_str()), ("all", Some("x")));
        assert!(parse("tapd send logs --to beta --socket /x --control-socket /y").is_ok());
        for wrong in ["", " --to all --priority 8", " --to all --ttl 0", " --to all a b"] {
            assert!(parse(&format!("tapd send logs{wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_received_has_one_form() {
        assert!(parse("tapd recv logs --count 3 --from --lines --events").is_ok());
        for wrong in ["--count 0", "--lines --null", "--length --lines", "--null --length"] {
            assert!(parse(&format!("tapd recv logs {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn forwarding_has_one_side() {
        assert!(parse("tapd forward db --listen 127.0.0.1:1 --to beta").is_ok());
        assert!(parse("tapd forward db --connect unix:/x --timeout 3").is_ok());
        for wrong in [
            "",
            " --listen x:1",
            " --to beta",
            " --connect x:1 --to beta",
            " --connect x:1 --listen x:2 --to beta",
        ] {
            assert!(parse(&format!("tapd forward db{wrong}")).is_err(), "{wrong}");
        }
    }
}
