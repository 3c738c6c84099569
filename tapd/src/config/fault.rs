//! Faults of a configuration: where, what is wrong, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};

/// A line of one of the configuration's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    /// 0 is the cluster file, 1 the local file.
    pub(super) file: usize,
    /// Counted from 1; 0 where the fault belongs to no line.
    pub(super) line: usize,
}

impl At {
    /// The cluster file as a whole.
    pub(super) const CLUSTER_FILE: Self = Self { file: 0, line: 0 };
}

impl At {
    /// This line, for a message about a fault at `other`.
    pub(super) fn seen_from(self, other: Self) -> String {
        match self.file {
            file if file == other.file => format!("line {}", self.line),
            0 => format!("line {} of the cluster file", self.line),
            _ => format!("line {} of the local file", self.line),
        }
    }
}

/// A value and the line it was written on.
#[derive(Debug, Clone)]
pub(super) struct Located<T> {
    pub(super) at: At,
    pub(super) value: T,
}

/// Collects faults while reading goes on.
#[derive(Debug, Default)]
pub(super) struct Collector {
    found: Vec<(At, String)>,
}

impl Collector {
    /// Notes one fault.
    pub(super) fn add(&mut self, at: At, message: impl Into<String>) {
        self.found.push((at, message.into()));
    }

    /// How many there are so far.
    pub(super) fn count(&self) -> usize {
        self.found.len()
    }

    /// Whether nothing was wrong so far.
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// All faults, in the order of files and lines; `paths` are the files by [`At::file`].
    pub(super) fn into_faults(mut self, paths: &[PathBuf]) -> Faults {
        self.found.sort();
        self.found.dedup();
        let fault = |(at, message): (At, String)| Fault {
            file: paths.get(at.file).cloned().unwrap_or_default(),
            line: (at.line > 0).then_some(at.line),
            message,
        };
        Faults(self.found.into_iter().map(fault).collect())
    }
}

/// One fault; prints as `FILE:LINE: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    file: PathBuf,
    line: Option<usize>,
    message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file.display(), self.message),
            None => write!(f, "{}: {}", self.file.display(), self.message),
        }
    }
}

/// Every fault of a configuration, at least one; prints one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Faults(Vec<Fault>);

impl Faults {
    /// A single fault that belongs to a file as a whole.
    pub(super) fn of_file(file: &Path, message: impl Into<String>) -> Self {
        Self(vec![Fault { file: file.to_owned(), line: None, message: message.into() }])
    }

    /// These and the faults of another file.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, fault) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
