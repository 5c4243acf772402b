//! Who a server runs as. Postgres refuses to run as root, so root lends it the user `postgres`, which the package makes.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::unistd::{Gid, Uid, User, geteuid};

/// The user that servers run as: ourselves, or another when we are root.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    other: Option<(Uid, Gid)>,
}

impl Owner {
    /// Ourselves; when we are root, the user `postgres` or else `nobody`.
    ///
    /// # Errors
    /// If we are root and there is neither.
    pub fn for_servers() -> Result<Self> {
        if !geteuid().is_root() {
            return Ok(Self { other: None });
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name).with_context(|| format!("cannot look up the user {name}"))? {
                return Ok(Self { other: Some((user.uid, user.gid)) });
            }
        }
        anyhow::bail!("PostgreSQL refuses to run as root, and there is no user postgres: run this as another user")
    }

    /// Ourselves.
    pub const fn me() -> Self {
        Self { other: None }
    }

    /// Makes `command` run as this user.
    pub fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if let Some((uid, gid)) = self.other {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        command
    }

    /// Hands a file or directory to this user.
    ///
    /// # Errors
    /// If it cannot be handed over.
    pub fn give(&self, path: &Path) -> Result<()> {
        if let Some((uid, gid)) = self.other {
            chown(path, Some(uid.as_raw()), Some(gid.as_raw()))
                .with_context(|| format!("cannot hand over {}", path.display()))?;
        }
        Ok(())
    }

    /// Whether this user can get to `directory`: each directory above it must let it pass.
    pub fn can_reach(&self, directory: &Path) -> bool {
        let mut command = Command::new("true");
        command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // The user is changed before the directory, so a start fails where the user may not go.
        self.apply(&mut command).status().is_ok_and(|status| status.success())
    }
}
