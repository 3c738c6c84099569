//! The command line's side of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::de::DeserializeOwned;

use super::CONTROL_VERSION;
use super::message::{ReplyLine, Request, RequestLine};
use crate::exit::{Exit, Failure};

/// A reply takes at most this long: more than the daemon gives itself.
const REPLY_TIMEOUT: Duration = Duration::from_secs(40);

/// A connection for one request.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the daemon.
    ///
    /// # Errors
    /// [`Exit::Unreachable`], with what may be the reason.
    pub(crate) fn connect(path: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path).map_err(|error| {
            let advice = match error.kind() {
                io::ErrorKind::PermissionDenied => "run this as the user that tapd runs as",
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    "is tapd running? If it uses another socket, name it with --control-socket"
                }
                _ => "name the daemon's socket with --control-socket",
            };
            unreachable_daemon(anyhow::anyhow!(
                "cannot connect to {}: {error}; {advice}",
                path.display()
            ))
        })?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Asks, and reads the reply's data.
    ///
    /// # Errors
    /// [`Exit::Refused`] with the daemon's words, or [`Exit::Unreachable`] when it falls silent.
    pub(crate) fn request<T: DeserializeOwned>(mut self, request: Request) -> Result<T, Failure> {
        let data = self.ask(request)?;
        serde_json::from_value(data)
            .context(
                "the daemon's reply is not understood; client and daemon may differ in version",
            )
            .map_err(Failure::from)
    }

    /// Asks for a capture or for events; what can be read from the result is the stream.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub(crate) fn stream(mut self, request: Request) -> Result<impl BufRead, Failure> {
        self.ask(request)?;
        self.stream.get_ref().set_read_timeout(None).map_err(unreachable_daemon)?;
        Ok(self.stream)
    }

    fn ask(&mut self, request: Request) -> Result<serde_json::Value, Failure> {
        let line = RequestLine { version: CONTROL_VERSION, request };
        let mut bytes = serde_json::to_vec(&line).context("cannot write the request as JSON")?;
        bytes.push(b'\n');
        let mut text = String::new();
        // A daemon that refuses without reading may have hung up already: its reply tells.
        let sent = self.stream.get_mut().write_all(&bytes);
        self.stream
            .get_ref()
            .set_read_timeout(Some(REPLY_TIMEOUT))
            .and_then(|()| self.stream.read_line(&mut text))
            .context("the daemon does not answer")
            .map_err(unreachable_daemon)?;
        if text.is_empty() {
            sent.map_err(unreachable_daemon)?;
            return Err(Failure::message(Exit::Unreachable, "the daemon hung up without a reply"));
        }
        let reply: ReplyLine = serde_json::from_str(&text)
            .context("what listens on the socket does not speak tapd's control protocol")
            .map_err(unreachable_daemon)?;
        if reply.ok {
            return Ok(reply.data.unwrap_or_default());
        }
        let error = reply.error.unwrap_or_else(|| "no reason given".to_owned());
        Err(Failure::message(Exit::Refused, format_args!("the daemon refused: {error}")))
    }
}

fn unreachable_daemon(error: impl Into<anyhow::Error>) -> Failure {
    Failure::new(Exit::Unreachable, error)
}
