//! A look at what of DPDK is here, without starting it.

use std::path::{Path, PathBuf};

use dpdk_sys::{Api, LoadError};

/// The shim, and the DPDK below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shim {
    /// Its file.
    pub path: PathBuf,
    /// Name and version of DPDK.
    pub version: String,
}

impl Shim {
    /// Looks for the shim as [`super::Eal::start`] does, and loads it. Nothing is started, and
    /// nothing that was is changed.
    ///
    /// # Errors
    /// It is missing, or what it needs is.
    pub fn find(named: Option<&Path>) -> Result<Self, LoadError> {
        let api = Api::load(named)?;
        Ok(Self { path: api.path().to_owned(), version: api.dpdk_version() })
    }
}
