//! tapd: the daemon, and the commands that talk to it.

mod cli;
mod config;
mod logging;
mod privileges;
mod socket_file;
mod daemon;
mod control;
mod show;
mod capture;
mod watch;
mod channel;
mod keygen;
mod bench_crypto;
mod doctor;
mod exit;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use cli::{
    CheckArgs, Cli, Command, DoctorArgs, FdbCommand, LinkArgs, LinkCommand, LinkMtu, PeerCommand,
    RunArgs,
};
use config::{Config, Faults, NodeSelector, Source};
use control::{Client, ReloadReply, Request};
use exit::{Exit, Failure};

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nothing is left to do where standard error is gone.
            let _ = writeln!(io::stderr(), "tapd: {failure}");
            failure.code()
        }
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run(args),
        Command::Check(args) => check(args),
        Command::Doctor(args) => examine(args),
        Command::Keygen { file } => keygen::run(file.as_deref()),
        Command::Show { topic, name, json, verbose, socket } => {
            show::run(&socket.path, topic, name, json, verbose)
        }
        Command::Fdb(command) => fdb(command),
        Command::Reload { socket } => reload(&socket.path),
        Command::Peer(PeerCommand::Rehandshake { node, all: _, socket }) => {
            Client::connect(&socket.path)?.request::<()>(Request::Rehandshake { node })
        }
        Command::Link(command) => link(command),
        Command::Watch { json, count, socket } => watch::run(&socket.path, json, count),
        Command::Capture { vni, write, count, socket } => {
            capture::run(&socket.path, Request::Capture { vni, count }, count, &write)
        }
        Command::Send(args) => channel::send::run(&args),
        Command::Recv(args) => channel::recv::run(&args),
        Command::Forward(args) => channel::forward::run(&args),
        Command::BenchCrypto { json, seconds, sizes } => {
            print(bench_crypto::run(json, seconds, &sizes)?.as_bytes())
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut cli::command(), "tapd", &mut script);
            print(&script)
        }
        Command::Man { directory } => man(directory.as_deref()),
    }
}

fn run(args: RunArgs) -> Result<(), Failure> {
    let source = Source {
        cluster: args.config,
        local: args.local,
        node: NodeSelector::from(args.node),
        control_socket: args.control_socket,
        log: args.log,
    };
    let config = source.load().map_err(config_failure)?;
    logging::init(&config.daemon.log)?;
    daemon::run(config, source)
}

fn check(args: CheckArgs) -> Result<(), Failure> {
    let node = NodeSelector::from(args.node);
    let checked =
        Config::check(&args.file, args.local.as_deref(), &node).map_err(config_failure)?;
    let own = match &checked.own {
        Some((id, name)) => format!("; this machine is node {id} ({name})"),
        None => "; this machine is none of the nodes".to_owned(),
    };
    let nodes = counted(checked.nodes, "node");
    let networks = counted(checked.networks, "network");
    let channels = counted(checked.channels, "channel");
    let file = args.file.display();
    let mut text = format!("{file}: no faults; {nodes}, {networks}, {channels}{own}\n");
    for (link, address) in &checked.missing {
        let advice = config::missing_advice(*address);
        text += &format!("{file}: warning: link {link}: no interface has {address}; {advice}\n");
    }
    print(text.as_bytes())
}

fn examine(args: DoctorArgs) -> Result<(), Failure> {
    let DoctorArgs { config, local, node, control_socket, json } = args;
    let node = NodeSelector::from(node);
    doctor::run(doctor::Request { config, local, node, control_socket, json })
}

fn config_failure(faults: Faults) -> Failure {
    let count = counted(faults.len(), "fault");
    Failure::message(Exit::Config, format_args!("the configuration has {count}\n{faults}"))
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn fdb(command: FdbCommand) -> Result<(), Failure> {
    let (socket, request) = match command {
        FdbCommand::Add { mac, vni, node, socket } => (socket, Request::FdbAdd { vni, mac, node }),
        FdbCommand::Del { mac, vni, socket } => (socket, Request::FdbDel { vni, mac }),
        FdbCommand::Flush { vni, socket } => (socket, Request::FdbFlush { vni }),
    };
    Client::connect(&socket.path)?.request::<()>(request)
}

fn link(command: LinkCommand) -> Result<(), Failure> {
    let (socket, request) = match command {
        LinkCommand::Drain(LinkArgs { peer, link, socket }) => {
            (socket, Request::LinkDrain { node: peer, link })
        }
        LinkCommand::Undrain(LinkArgs { peer, link, socket }) => {
            (socket, Request::LinkUndrain { node: peer, link })
        }
        LinkCommand::Mtu { link: LinkArgs { peer, link, socket }, size } => {
            let size = match size {
                LinkMtu::Auto => None,
                LinkMtu::Fixed(size) => Some(size),
            };
            (socket, Request::LinkMtu { node: peer, link, size })
        }
    };
    Client::connect(&socket.path)?.request::<()>(request)
}

fn reload(socket: &Path) -> Result<(), Failure> {
    let reply: ReloadReply = Client::connect(socket)?.request(Request::Reload)?;
    print(show::reload_text(&reply).as_bytes())?;
    match reply.failed.len() {
        0 => Ok(()),
        count => {
            let changes = counted(count, "change");
            let message = format_args!("the daemon could not apply {changes}; see above");
            Err(Failure::message(Exit::Refused, message))
        }
    }
}

fn man(directory: Option<&Path>) -> Result<(), Failure> {
    let command = cli::command();
    match directory {
        Some(directory) => clap_mangen::generate_to(command, directory)
            .with_context(|| format!("cannot write manual pages into {}", directory.display()))?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page).context("cannot make the page")?;
            print(&page)?;
        }
    }
    Ok(())
}

/// Writes to standard output; a reader that has seen enough is no failure.
fn print(bytes: &[u8]) -> Result<(), Failure> {
    match io::stdout().lock().write_all(bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Runtime, error))
        }
        _ => Ok(()),
    }
}
