//! Running programs, with errors that say which and why.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::cleanup::{self, Leftover};
use crate::{sys, wait};

/// Runs `program` to its end and gives its standard output.
///
/// # Errors
/// It could not be started or did not end with 0; the error holds what it wrote.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    run_command(&mut command)
}

/// Runs `command` to its end and gives its standard output.
///
/// # Errors
/// It could not be started or did not end with 0; the error holds what it wrote.
pub fn run_command(command: &mut Command) -> Result<String> {
    let output = output_of(command)?;
    ensure!(
        output.status.success(),
        "{} ended with {}:\n{}{}",
        describe(command),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` to its end, whatever that end is.
///
/// # Errors
/// It could not be started.
pub fn output_of(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", describe(command)))
}

/// A program under way; killed on drop, and by Ctrl-C.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
}

impl Running {
    /// Starts `command` with no standard input.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let name = describe(command);
        let child =
            command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start {name}"))?;
        cleanup::register(Leftover::Process(child.id()));
        Ok(Self { child, name })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its end, if it has ended.
    #[must_use]
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process has been reaped.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        ensure!(self.ended().is_none(), "{} has ended", self.name);
        sys::send_signal(self.pid(), signal).with_context(|| format!("signal to {}", self.name))
    }

    /// Takes the pipe of its standard error, if it was started with one.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Takes the pipe of its standard output, if it was started with one.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It did not within `deadline`.
    pub fn wait_end(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait::until_some(&what, deadline, || self.ended())
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits as long as it takes, without a pause between two looks, until it ends by itself, and
    /// gives what it wrote to its standard error, if that is a pipe: for short programs whose end
    /// is an instant to be measured.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn complete(mut self) -> Result<Output> {
        let stderr = drain(self.child.stderr.take().as_mut());
        let status = self.child.wait().with_context(|| format!("waiting for {}", self.name))?;
        Ok(Output { status, stdout: Vec::new(), stderr })
    }

    /// Waits until it ends by itself and gives what it wrote to the pipes it was started with;
    /// kills it when `deadline` passes.
    ///
    /// # Errors
    /// It did not end in time.
    pub fn finish(mut self, deadline: Duration) -> Result<Output> {
        // Read both pipes elsewhere, or a program that fills one would never end.
        let mut stdout = self.child.stdout.take();
        let mut stderr = self.child.stderr.take();
        let out = std::thread::spawn(move || drain(stdout.as_mut()));
        let err = std::thread::spawn(move || drain(stderr.as_mut()));
        let ended = self.wait_end(deadline);
        if ended.is_err() {
            self.kill();
        }
        let stdout = out.join().map_err(|_| anyhow!("the reader of {} died", self.name))?;
        let stderr = err.join().map_err(|_| anyhow!("the reader of {} died", self.name))?;
        let status = ended.with_context(|| String::from_utf8_lossy(&stderr).into_owned())?;
        Ok(Output { status, stdout, stderr })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
        cleanup::unregister(&Leftover::Process(self.pid()));
    }
}

fn drain(pipe: Option<&mut impl std::io::Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        let _ = pipe.read_to_end(&mut bytes);
    }
    bytes
}

/// The command as a person would type it.
#[must_use]
pub fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether `program` is on the PATH.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Where one of our own programs was built: the folder in `TAPD_BIN_DIR`, which
/// `integration/run` sets; else the release build beside the running program's, else the build
/// that the running program is of.
///
/// # Errors
/// It is in none of them.
pub fn built_binary(name: &str) -> Result<PathBuf> {
    let mut places = Vec::new();
    if let Some(dir) = std::env::var_os("TAPD_BIN_DIR") {
        places.push(PathBuf::from(dir));
    } else {
        let here = std::env::current_exe().context("where is this program?")?;
        // target/release/bench, or a test: target/debug/deps/e2e-1234.
        let profile = here.ancestors().skip(1).find(|dir| !dir.ends_with("deps"));
        let target = profile.and_then(Path::parent);
        places.extend(target.map(|target| target.join("release")));
        places.extend(profile.map(Path::to_owned));
    }
    places.iter().map(|dir| dir.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        anyhow!("{name} is not built; looked in {places:?}. Run `cargo build --release` first")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_the_command_and_its_words() {
        let error =
            run("sh", &["-c", "echo hidden; echo loud >&2; exit 3"]).unwrap_err().to_string();
        for part in ["sh -c", "hidden", "loud", "3"] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let running = Running::spawn(Command::new("sleep").arg("60")).unwrap();
        assert!(running.finish(Duration::from_millis(50)).is_err());
    }
}
