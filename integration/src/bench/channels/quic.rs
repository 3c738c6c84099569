//! A QUIC stream of quinn, by a small program of ours (`integration/rivals/quinn-stream`), which is
//! no part of the workspace.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::programs::{Program, Scratch};
use crate::bench::rivals::{Need, crate_program};
use crate::topology::Pair;

/// What it cannot do without.
pub(super) const NEEDS: [Need; 1] = [Need::Folder {
    program: "quinn-stream",
    folder: concat!(env!("CARGO_MANIFEST_DIR"), "/rivals/quinn-stream"),
}];
/// Port of the sink.
pub(super) const PORT: u16 = 25910;

/// The program.
#[derive(Debug)]
pub(super) struct Quinn {
    program: PathBuf,
    scratch: Scratch,
}

impl Quinn {
    /// Looks for it.
    ///
    /// # Errors
    /// It is not built.
    pub(super) fn find() -> Result<Self> {
        for need in NEEDS {
            need.check()?;
        }
        Ok(Self { program: crate_program("quinn-stream")?, scratch: Scratch::new()? })
    }

    /// Starts a stream from the first host to the second that goes on for `span`.
    ///
    /// # Errors
    /// The programs cannot be run.
    pub(super) fn start(&self, pair: &Pair, span: Duration) -> Result<[Program; 2]> {
        let certificate = self.scratch.path("certificate");
        let _ = std::fs::remove_file(&certificate);
        let address = format!("{}:{PORT}", pair.family.address(2));
        let mut command = pair.beta.command(&self.program);
        command.args(["sink", &address]).arg(&certificate);
        let mut sink = Program::start(&self.scratch, "sink", &mut command)?;
        sink.wait("the certificate", || certificate.exists())?;
        let mut command = pair.alpha.command(&self.program);
        command.args(["source", &address]).arg(&certificate);
        command.arg(span.as_secs_f64().to_string());
        Ok([Program::start(&self.scratch, "source", &mut command)?, sink])
    }
}
