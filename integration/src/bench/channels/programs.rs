//! Two programs, one on each host, and what one of them says at its end.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::cleanup::{self, Leftover};
use crate::command::Running;
use crate::wait;

/// How long a program may take to begin: libknet's links come up after some pings.
const BEGIN_PATIENCE: Duration = Duration::from_secs(20);
/// How long it may go on beyond the time that it was told.
const END_PATIENCE: Duration = Duration::from_secs(25);

/// A folder for what the programs write; removed on drop.
#[derive(Debug)]
pub(super) struct Scratch(TempDir);

impl Scratch {
    pub(super) fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tapdtest-").tempdir()?;
        cleanup::register(Leftover::Directory(dir.path().to_owned()));
        Ok(Self(dir))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        cleanup::unregister(&Leftover::Directory(self.0.path().to_owned()));
    }
}

/// A program under way; killed on drop.
#[derive(Debug)]
pub(super) struct Program {
    running: Running,
    output: PathBuf,
    errors: PathBuf,
}

impl Program {
    /// Starts `command`; what it writes is kept under `name`.
    pub(super) fn start(scratch: &Scratch, name: &str, command: &mut Command) -> Result<Self> {
        let (output, errors) =
            (scratch.path(&format!("{name}.out")), scratch.path(&format!("{name}.err")));
        command.stdout(File::create(&output)?).stderr(File::create(&errors)?);
        Ok(Self { running: Running::spawn(command.stdin(Stdio::null()))?, output, errors })
    }

    /// Waits until `condition` holds, unless the program ends before.
    pub(super) fn wait(&mut self, what: &str, condition: impl Fn() -> bool) -> Result<()> {
        wait::until(what, BEGIN_PATIENCE, || self.running.ended().is_some() || condition())
            .with_context(|| self.words())?;
        // A short program may be through with it all.
        ensure!(condition(), "it ended at once: {}", self.words());
        Ok(())
    }

    /// Waits until it says that it is ready.
    pub(super) fn wait_up(&mut self) -> Result<()> {
        let output = self.output.clone();
        self.wait("a program to be up", || {
            fs::read_to_string(&output).is_ok_and(|text| text.lines().any(|line| line == "up"))
        })
    }

    /// Makes sure that it has not ended.
    pub(super) fn still_runs(&mut self) -> Result<()> {
        let ended = self.running.ended();
        ensure!(ended.is_none(), "a program ended too soon: {}", self.words());
        Ok(())
    }

    /// Waits for its end, `span` from now, and gives what it said.
    pub(super) fn finish_text(mut self, span: Duration) -> Result<String> {
        let ended = self.running.wait_end(span + END_PATIENCE).with_context(|| self.words())?;
        ensure!(ended.success(), "it ended with {ended}: {}", self.words());
        Ok(fs::read_to_string(&self.output)?)
    }

    /// Waits for its end, `span` from now, and gives the JSON of its last line.
    pub(super) fn finish(self, span: Duration) -> Result<Value> {
        let errors = self.errors.clone();
        let text = self.finish_text(span)?;
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| {
            format!("it said: {text}{}", fs::read_to_string(errors).unwrap_or_default())
        })
    }

    fn words(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }
}

/// A number in what a program says.
pub(super) fn number(said: &Value, key: &str) -> Result<f64> {
    said[key].as_f64().with_context(|| format!("no {key} in {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_what_counts() {
        let scratch = Scratch::new().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo up; echo '{\"count\": 3}'"]);
        let mut program = Program::start(&scratch, "p", &mut command).unwrap();
        program.wait_up().unwrap();
        let said = program.finish(Duration::ZERO).unwrap();
        assert_eq!(number(&said, "count").unwrap(), 3.0);
        assert!(number(&said, "bytes").is_err());
    }

    #[test]
    fn a_program_that_fails_says_why() {
        let scratch = Scratch::new().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo because >&2; exit 1"]);
        let mut program = Program::start(&scratch, "p", &mut command).unwrap();
        let error = program.wait_up().unwrap_err();
        assert!(format!("{error:#}").contains("because"), "{error:#}");
    }
}
