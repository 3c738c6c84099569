//! More files for a guest: programs of ours with the libraries that they need here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use tempfile::TempDir;

use crate::cleanup::{self, Leftover};
use crate::command::{built_binary, run};
use crate::skip;

/// What DPDK needs for any card: its buses, and a kind of packet pool.
const PLUG_INS: [&str; 3] = ["bus_pci", "bus_vdev", "mempool_ring"];

/// Files that are unpacked over a guest's image.
#[derive(Debug)]
pub struct Files {
    dir: TempDir,
}

impl Files {
    /// None yet.
    ///
    /// # Errors
    /// There is no room for them.
    pub fn new() -> Result<Self> {
        let this = Self { dir: tempfile::Builder::new().prefix("tapdtest-").tempdir()? };
        cleanup::register(Leftover::Directory(this.dir.path().to_owned()));
        fs::create_dir(this.root())?;
        Ok(this)
    }

    /// Puts a file to `to`, an absolute path in the guest.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn file(&self, from: &Path, to: &str) -> Result<()> {
        let to = self.place(to)?;
        fs::copy(from, &to).with_context(|| format!("{} for a guest", from.display()))?;
        Ok(())
    }

    /// Puts a program that was built here to `/bin`, and its libraries to where they are here.
    ///
    /// # Errors
    /// It was not built.
    pub fn program(&self, name: &str) -> Result<()> {
        let from = built_binary(name)?;
        let to = format!("/bin/{name}");
        self.libraries(&from)?;
        // Without its symbols: it would be most of the guest's memory.
        let place = self.place(&to)?;
        let words = [&from, &place].map(|path| path.display().to_string());
        run("strip", &["-o", &words[1], &words[0]]).map(|_| ())
    }

    /// Puts DPDK there, with the drivers of these names (`net_e1000`, say), and the shim to `/bin`
    /// beside the programs.
    ///
    /// # Errors
    /// The shim was not built, or DPDK is not installed: a skip.
    pub fn dpdk(&self, drivers: &[&str]) -> Result<()> {
        let shim = crate::dpdk::shim()?;
        self.file(&shim, "/bin/libtapd-dpdk.so.1")?;
        let libraries = self.libraries(&shim)?;
        let eal = libraries.iter().find(|path| path.to_string_lossy().contains("/librte_eal.so."));
        let eal = eal.ok_or_else(|| anyhow!("{} is without DPDK", shim.display()))?;
        let name = eal.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let version = name.trim_start_matches("librte_eal.so.").to_owned();
        let home = eal.parent().unwrap_or(eal);
        let plug_ins = fs::canonicalize(eal)?.with_file_name(format!("dpdk/pmds-{version}.0"));
        for driver in PLUG_INS.iter().chain(drivers) {
            // One file with two names, as it is here: DPDK ends itself if it finds a bus twice.
            let library = home.join(format!("librte_{driver}.so.{version}"));
            if !library.exists() {
                let library = library.display();
                return Err(skip::skip(format!("no {library}: apt-get install dpdk-dev")));
            }
            self.libraries(&library)?;
            self.once(&library)?;
            let name = plug_ins.join(format!("librte_{driver}.so"));
            symlink(&library, self.place(&name.display().to_string())?)?;
        }
        Ok(())
    }

    /// The archive of all of them.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn pack(&self) -> Result<PathBuf> {
        let archive = self.dir.path().join("archive");
        let (root, to) = (self.root(), archive.display().to_string());
        let line =
            format!("cd {} && find . | busybox cpio -o -H newc | gzip -1 >{to}", root.display());
        run("bash", &["-o", "pipefail", "-c", &line])?;
        Ok(archive)
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A place in the guest, with the folders that lead there.
    fn place(&self, path: &str) -> Result<PathBuf> {
        let place = self.root().join(path.trim_start_matches('/'));
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(place)
    }

    /// Puts the libraries of a program or a library to where they are here, and gives them.
    fn libraries(&self, of: &Path) -> Result<Vec<PathBuf>> {
        let list = paths_in(&run("ldd", &[&of.display().to_string()])?);
        list.iter().try_for_each(|path| self.once(path))?;
        Ok(list)
    }

    /// Puts a file to where it is here, unless it is there.
    fn once(&self, path: &Path) -> Result<()> {
        let to = path.display().to_string();
        if self.place(&to)?.exists() { Ok(()) } else { self.file(path, &to) }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        cleanup::unregister(&Leftover::Directory(self.dir.path().to_owned()));
    }
}

/// The files that `ldd` names.
fn paths_in(text: &str) -> Vec<PathBuf> {
    // "libc.so.6 => /lib/libc.so.6 (0x7f)", "/lib64/ld-linux-x86-64.so.2 (0x7f)", and one without
    // a file.
    let path =
        |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    text.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_ldd_are_understood() {
        let text = "\tlinux-vdso.so.1 (0x00007f7c)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 \
            (0x00007f7d)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f7e)\n";
        let paths = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(paths_in(text), paths.map(PathBuf::from));
    }
}
