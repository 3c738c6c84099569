//! The command line: every command and flag, and the help that teaches them.

use std::path::PathBuf;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use encap::id::Vni;
use encap::wire::ethernet::MacAddr;

use crate::bench_crypto::{DEFAULT_SIZES, MAX_SIZE};
use crate::config::{DEFAULT_CONTROL_SOCKET, MIN_UNDERLAY_MTU, check_socket_path};
use crate::control::Topic;
use crate::exit::exit_code_help;
use crate::logging;

mod channels;

pub(crate) use channels::{ChannelArgs, ForwardArgs, RecvArgs, SendArgs};

use channels::{FORWARD_HELP, RECV_HELP, SEND_HELP};

const LONG_ABOUT: &str = "\
tapd joins machines to virtual Ethernet networks: it takes frames from TAP devices and carries \
them, encrypted, in UDP datagrams to the other nodes of its cluster.

One TOML file describes the whole cluster and is the same on every node.";

const EXAMPLES: &str = "\
Examples:
  tapd keygen /etc/tapd/cluster.key                 make the cluster's secret, copy it to every node
  tapd check /etc/tapd/cluster.toml                 every fault of a configuration, with its line
  tapd doctor --config /etc/tapd/cluster.toml       what this machine can do, and what to change
  tapd run --config /etc/tapd/cluster.toml          run the daemon; the node is found by its address
  tapd run --config cluster.toml --node alpha       run it as the node \"alpha\"
  tapd show peers                                   who is connected
  tapd show links                                   which paths lead there, and how good they are
  tapd bench-crypto                                 which cipher is fast on this machine
  tapd watch                                        what happens, as it happens
  tapd capture --vni 100 --write - | tcpdump -r -   look at the frames of a network
  tapd send logs --to beta --lines                  a message to programs there, for each line
  tapd forward db --listen 127.0.0.1:5432 --to beta connections to beta, through tapd";

const RUN_EXAMPLES: &str = "\
The daemon logs a line that contains \"ready\" when its taps are up, its sockets bound and its \
control socket listening. SIGTERM and SIGINT end it and leave nothing behind, except that taps with \
existing = true keep their address, MTU and up state; SIGHUP is tapd reload.

Examples:
  tapd run --config /etc/tapd/cluster.toml
  TAPD_NODE=beta tapd run --config cluster.toml --log info,tapd::daemon::notices=debug";

const DOCTOR_HELP: &str = "\
Each check is one line: ok, warn or fail, what was checked, what was found, and what to change, as \
the exact command where there is one. With a configuration the uplinks and taps of this node are \
looked at; without, the machine in general. It can run beside a daemon: what that daemon holds \
counts as free.

Nothing is changed and nothing leaves the machine. Super-frames go through a temporary tap, \
tapdoctor0, in a network namespace of its own, which needs root; datagrams go from socket to socket \
on each address.

  warn   tapd runs, but slower or less surely than it could
  fail   tapd does not start, or does not carry; the exit code is 1

Examples:
  tapd doctor                                       the machine in general
  tapd doctor --config /etc/tapd/cluster.toml       this node's addresses, ports and taps
  tapd doctor --json | jq -r '.[] | select(.status != \"ok\") | .advice'";

const CAPTURE_EXAMPLES: &str = "\
Frames are what the taps see, before they are sealed and after they are opened: the capture is \
not encrypted; a file is made readable for its owner only. It ends after --count frames, or with \
Ctrl-C; when the daemon ends it earlier, the exit code is 1.

Examples:
  tapd capture --vni 100 --write blue.pcapng
  tapd capture --write - | wireshark -k -i -";

const WATCH_HELP: &str = "\
Times are UTC. It ends after --count events, or with Ctrl-C; when the daemon ends it earlier, the \
exit code is 1.

Examples:
  tapd watch                          12:34:56.789 beta lan  suspect  6 rounds behind link wan
  tapd watch --json | jq -c 'select(.event == \"fail_over\")'";

const BENCH_CRYPTO_HELP: &str = "\
What it shows: for each size of frame and each cipher that `ciphers` of [cluster] can list, the time \
that one core takes to seal a frame into a datagram and to open it again, what that is in 10^9 bytes \
of frames a second, and how many times as fast as aes-256-gcm it is. BY is the code that does it. \
Then one line of advice. It measures the cipher alone: a daemon moves frames as well, so it gains less.

It needs no root, no configuration and no daemon, and sends nothing. The ciphers take turns of a few \
milliseconds; every figure is the median of the turns. Let the machine be quiet, or give it more \
seconds. Compare both ends of a path: the slower one counts.

Examples:
  tapd bench-crypto
  tapd bench-crypto --seconds 10 --size 128 1400
  tapd bench-crypto --json | jq '.results[] | select(.size == 1424) | [.cipher, .ratio]'";

/// Virtual Ethernet networks over encrypted UDP
#[derive(Debug, Parser)]
#[command(
    name = "tapd",
    version,
    long_about = LONG_ABOUT,
    after_help = exit_code_help(),
    after_long_help = format!("{EXAMPLES}\n\n{}", exit_code_help()),
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon
    #[command(after_long_help = format!("{RUN_EXAMPLES}\n\n{}", exit_code_help()))]
    Run(RunArgs),
    /// Say every fault of a configuration, each with its line and what to do
    #[command(after_help = "Exits with 0 and one line, or with 3 and one line for each fault.")]
    Check(CheckArgs),
    /// Try out what this machine can do for tapd, and say what to change
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// Make a cluster key: print it, or create a file that only its owner can read
    Keygen {
        /// File to create, mode 0600; one that exists is never overwritten
        file: Option<PathBuf>,
    },
    /// Show the state of a running daemon
    Show {
        /// What to show
        #[arg(value_enum, default_value_t)]
        topic: Topic,
        /// Only this one, with channels
        name: Option<String>,
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
        /// More of it, where there is more: all that is known of each link
        #[arg(long, short)]
        verbose: bool,
        /// Where the daemon listens.
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Change the forwarding database of a running daemon
    #[command(subcommand)]
    Fdb(FdbCommand),
    /// Read the configuration again and apply what can be applied; says what needs a restart
    Reload {
        /// Where the daemon listens.
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Act on a peer
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Act on a link to a peer
    #[command(subcommand)]
    Link(LinkCommand),
    /// Tell what happens, as it happens: links, failovers, path MTUs, peers
    #[command(after_help = WATCH_HELP)]
    Watch {
        /// As JSON, one line for each event
        #[arg(long)]
        json: bool,
        /// End after so many events
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
        /// Where the daemon listens.
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Record overlay frames as pcapng
    #[command(after_long_help = CAPTURE_EXAMPLES)]
    Capture {
        /// Only frames of this network
        #[arg(long, value_parser = parse_vni)]
        vni: Option<Vni>,
        /// File to write, or - for standard output
        #[arg(long, value_name = "FILE|-", default_value = "-")]
        write: PathBuf,
        /// End after so many frames
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
        /// Where the daemon listens.
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Send messages, or a stream, to programs on other nodes
    #[command(after_long_help = SEND_HELP)]
    Send(SendArgs),
    /// Print the messages of a channel, or a stream
    #[command(after_long_help = RECV_HELP)]
    Recv(RecvArgs),
    /// Carry connections of programs to another node, each over a stream of its own
    #[command(after_long_help = FORWARD_HELP)]
    Forward(ForwardArgs),
    /// Measure how fast this machine seals and opens frames with each cipher
    #[command(after_help = BENCH_CRYPTO_HELP)]
    BenchCrypto {
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
        /// Measure for about so long
        #[arg(
            long,
            value_name = "N",
            default_value_t = 3,
            value_parser = clap::value_parser!(u64).range(1..=600)
        )]
        seconds: u64,
        /// Bytes of the frames, one size or more
        #[arg(
            long = "size",
            value_name = "BYTES",
            num_args = 1..,
            default_values_t = DEFAULT_SIZES,
            value_parser = clap::value_parser!(u32).range(1..=MAX_SIZE)
        )]
        sizes: Vec<u32>,
    },
    /// Print the completion script of a shell
    #[command(after_help = "Example: tapd completions bash > /etc/bash_completion.d/tapd")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    #[command(after_help = "Example: tapd man > /usr/local/share/man/man1/tapd.1")]
    Man {
        /// Write the pages of all commands into this directory instead
        #[arg(long)]
        directory: Option<PathBuf>,
    },
}

/// `tapd run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The cluster's configuration, the same on every node
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// This node's differences, laid over it key by key
    #[arg(long, value_name = "FILE")]
    pub(crate) local: Option<PathBuf>,
    /// Which node this is; by default the one that owns a listed address
    #[arg(long, value_name = "ID|NAME", env = "TAPD_NODE")]
    pub(crate) node: Option<String>,
    /// Where to listen for commands; beats the configuration [default: /run/tapd.sock]
    #[arg(
        long,
        value_name = "PATH",
        env = "TAPD_CONTROL_SOCKET",
        value_parser = PathBufValueParser::new()
            .try_map(|path| check_socket_path(&path).map(|()| path))
    )]
    pub(crate) control_socket: Option<PathBuf>,
    /// Log filter, such as info,tapd::daemon::notices=debug; beats the configuration [default: info]
    #[arg(long, value_name = "FILTER", value_parser = parse_filter)]
    pub(crate) log: Option<String>,
}

/// `tapd check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The cluster's configuration
    pub(crate) file: PathBuf,
    /// A node's differences, laid over it key by key
    #[arg(long, value_name = "FILE")]
    pub(crate) local: Option<PathBuf>,
    /// Check that it is good for this node too
    #[arg(long, value_name = "ID|NAME", env = "TAPD_NODE")]
    pub(crate) node: Option<String>,
}

/// `tapd doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The cluster's configuration; without it the machine is looked at in general
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// This node's differences, laid over it key by key
    #[arg(long, value_name = "FILE", requires = "config")]
    pub(crate) local: Option<PathBuf>,
    /// Which node this is; by default the one that owns a listed address
    #[arg(long, value_name = "ID|NAME", env = "TAPD_NODE")]
    pub(crate) node: Option<String>,
    /// Where a daemon may listen; beats the configuration [default: /run/tapd.sock]
    #[arg(
        long,
        value_name = "PATH",
        env = "TAPD_CONTROL_SOCKET",
        value_parser = PathBufValueParser::new()
            .try_map(|path| check_socket_path(&path).map(|()| path))
    )]
    pub(crate) control_socket: Option<PathBuf>,
    /// As JSON, for programs: a list of check, status, found and advice
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where the daemon listens.
#[derive(Debug, Clone, Args)]
pub(crate) struct SocketArgs {
    /// The daemon's control socket
    #[arg(
        long = "control-socket",
        value_name = "PATH",
        env = "TAPD_CONTROL_SOCKET",
        default_value = DEFAULT_CONTROL_SOCKET
    )]
    pub(crate) path: PathBuf,
}

/// `tapd fdb`.
#[derive(Debug, Subcommand)]
pub(crate) enum FdbCommand {
    /// Add a static entry: a station is behind a node
    #[command(after_help = "Example: tapd fdb add 02:00:00:00:00:05 --vni 100 --node beta")]
    Add {
        /// The station's address
        mac: MacAddr,
        /// The network
        #[arg(long, value_parser = parse_vni)]
        vni: Vni,
        /// The node
        #[arg(long, value_name = "ID|NAME")]
        node: String,
        /// Where the daemon listens.
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Remove an entry, static or learnt
    Del {
        /// The station's address
        mac: MacAddr,
        /// The network
        #[arg(long, value_parser = parse_vni)]
        vni: Vni,
        /// Where the daemon listens.
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Remove the learnt entries of one network, or of all
    Flush {
        /// Only this network
        #[arg(long, value_parser = parse_vni)]
        vni: Option<Vni>,
        /// Where the daemon listens.
        #[command(flatten)]
        socket: SocketArgs,
    },
}

/// `tapd peer`.
#[derive(Debug, Subcommand)]
pub(crate) enum PeerCommand {
    /// Make a new handshake, and so new keys, now
    Rehandshake {
        /// The peer
        #[arg(value_name = "NODE", required_unless_present = "all", conflicts_with = "all")]
        node: Option<String>,
        /// All peers
        #[arg(long)]
        all: bool,
        /// Where the daemon listens.
        #[command(flatten)]
        socket: SocketArgs,
    },
}

/// `tapd link`.
#[derive(Debug, Subcommand)]
pub(crate) enum LinkCommand {
    /// Take a link out of use with nothing lost; without another link it goes on all the same
    #[command(after_help = "Example: tapd link drain beta lan\n\
        It lasts until tapd link undrain, or until the daemon ends.")]
    Drain(LinkArgs),
    /// Use a drained link again
    Undrain(LinkArgs),
    /// Fix the path MTU of a link until the daemon ends, or have it discovered again
    #[command(
        after_help = "Examples:\n  tapd link mtu beta wan 1400\n  tapd link mtu beta wan auto"
    )]
    Mtu {
        /// Which link.
        #[command(flatten)]
        link: LinkArgs,
        /// Bytes of IP that the path takes, 1280 to 65535, or auto
        #[arg(value_name = "SIZE|auto", value_parser = parse_mtu)]
        size: LinkMtu,
    },
}

/// A link to a peer.
#[derive(Debug, Args)]
pub(crate) struct LinkArgs {
    /// The peer: id or name
    pub(crate) peer: String,
    /// The link: name, or index as in tapd show links
    pub(crate) link: String,
    /// Where the daemon listens.
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
}

/// What `tapd link mtu` sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkMtu {
    /// Discovered.
    Auto,
    /// Bytes of IP.
    Fixed(u16),
}

fn parse_mtu(text: &str) -> Result<LinkMtu, String> {
    if text == "auto" {
        return Ok(LinkMtu::Auto);
    }
    let size = text.parse().ok().filter(|size| *size >= MIN_UNDERLAY_MTU);
    size.map(LinkMtu::Fixed)
        .ok_or_else(|| format!("write auto, or {MIN_UNDERLAY_MTU} to {} bytes", u16::MAX))
}

fn parse_vni(text: &str) -> Result<Vni, String> {
    text.parse()
        .ok()
        .and_then(Vni::new)
        .ok_or_else(|| format!("a VNI is a number from 0 to {}", Vni::MAX))
}

fn parse_filter(text: &str) -> Result<String, String> {
    logging::parse_filter(text).map(|_| text.to_owned())
}

/// The commands as clap sees them, for completions and manual pages.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn rehandshake_needs_exactly_one_target() {
        let parse = |words: &[&str]| {
            Cli::try_parse_from(["tapd", "peer", "rehandshake"].iter().chain(words)).is_ok()
        };
        assert!(parse(&["beta"]));
        assert!(parse(&["--all"]));
        assert!(!parse(&[]));
        assert!(!parse(&["beta", "--all"]));
    }

    #[test]
    fn links_are_named_by_peer_and_link() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("tapd link drain beta lan").is_ok());
        assert!(parse("tapd link undrain 2 0 --control-socket /tmp/x.sock").is_ok());
        assert!(parse("tapd link drain beta").is_err());
        for (text, expected) in [("auto", LinkMtu::Auto), ("1280", LinkMtu::Fixed(1280))] {
            let parsed = parse(&format!("tapd link mtu beta lan {text}")).unwrap();
            let Command::Link(LinkCommand::Mtu { size, .. }) = parsed.command else { panic!() };
            assert_eq!(size, expected);
        }
        for text in ["1279", "65536", "large"] {
            let fault = parse(&format!("tapd link mtu beta lan {text}")).unwrap_err().to_string();
            assert!(fault.contains("1280 to 65535"), "{fault}");
        }
        assert!(parse("tapd watch --json --count 3").is_ok());
        assert!(parse("tapd watch --count 0").is_err());
        assert!(parse("tapd show links -v").is_ok());
        assert!(parse("tapd show channels backup --json").is_ok());
    }

    #[test]
    fn values_are_checked() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("tapd fdb add 02:00:00:00:00:05 --vni 100 --node 2").is_ok());
        assert!(parse("tapd doctor --json").is_ok());
        assert!(parse("tapd doctor --local x").is_err());
        assert!(parse("tapd fdb add 02:00 --vni 100 --node 2").is_err());
        assert!(parse("tapd capture --vni 16777216").is_err());
        assert!(parse("tapd capture --count 0").is_err());
        assert!(parse("tapd run --config x --log encap=loud").is_err());
        assert!(parse("tapd show wine").is_err());
        assert!(parse("tapd bench-crypto --seconds 1 --size 64 1424 --size 65535 --json").is_ok());
        assert!(parse("tapd bench-crypto --seconds 0").is_err());
        assert!(parse("tapd bench-crypto --size 0").is_err());
        assert!(parse("tapd bench-crypto --size 65536").is_err());
        let run = |path: &str| parse(&format!("tapd run --config x --control-socket {path}"));
        let longest = format!("/{}", "x".repeat(106));
        assert!(run(&longest).is_ok());
        let fault = run(&format!("{longest}x")).unwrap_err().to_string();
        assert!(fault.contains("is 108 bytes long"), "{fault}");
        let fault = run("tapd.sock").unwrap_err().to_string();
        assert!(fault.contains("must be an absolute path"), "{fault}");
    }
}
