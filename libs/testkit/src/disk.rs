//! A disk of its own for a server, small enough to be filled: a tmpfs. Mounting needs root; where that is not granted it is a
//! directory of the ordinary disk: ask [`Disk::can_be_filled`] and say so.
//!
//! It is unmounted when dropped; what a killed owner left mounted is unmounted by the next one.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use carillon_servers::Home;

/// The mount's source is this and the process id.
const SOURCE: &str = "carillon-disk-";
/// What fills it.
const FILLER: &str = "filler";

/// Where a server lives.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    mounted: bool,
    /// The directory of the mount goes with it.
    _above: Home,
}

impl Disk {
    /// One of so many megabytes.
    ///
    /// # Errors
    /// If its directory cannot be made.
    pub fn of_megabytes(megabytes: u32) -> Result<Self> {
        unmount_stale();
        let above = Home::temporary()?;
        let path = above.path().join("disk");
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let source = format!("{SOURCE}{}", std::process::id());
        let size = format!("size={megabytes}m");
        let mounted = quietly(Command::new("mount").args(["-t", "tmpfs", "-o", &size, &source]).arg(&path));
        Ok(Self { path, mounted, _above: above })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was mounted.
    pub const fn can_be_filled(&self) -> bool {
        self.mounted
    }

    /// Fills it to the last byte.
    ///
    /// # Errors
    /// If nothing can be written there at all.
    pub fn fill(&self) -> Result<()> {
        let mut filler = File::create(self.path.join(FILLER))?;
        for size in [1 << 20, 1 << 12] {
            let bytes = vec![7; size];
            while filler.write_all(&bytes).is_ok() {}
        }
        Ok(())
    }

    /// Gives the room back.
    pub fn empty(&self) {
        let _ = std::fs::remove_file(self.path.join(FILLER));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            unmount(&self.path);
        }
    }
}

/// Lazily: a watcher may still look at it.
fn unmount(path: &Path) {
    quietly(Command::new("umount").arg("-l").arg(path));
}

fn unmount_stale() {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(source), Some(path)) = (words.next(), words.next()) else { continue };
        let owner = source.strip_prefix(SOURCE);
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            unmount(Path::new(path));
        }
    }
}

fn quietly(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
