//! Private files: readable by their owner alone, written whole or not at all.
//!
//! Invariant: a file that others can read is never used, because what others could read they may have
//! copied, and what others could write may not be ours. The error says what to do.

use anyhow::{Context, bail};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Longer files were not written by us.
const FILE_MAX: u64 = 1 << 20;

/// Creates the folder with mode 0700 if there is none, and refuses one in which others can replace files.
pub fn private_folder(folder: &Path) -> anyhow::Result<()> {
    match fs::DirBuilder::new().mode(0o700).recursive(true).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot create the data folder {}", folder.display()))?;
        }
        _ => {}
    }
    let metadata = fs::metadata(folder).with_context(|| format!("cannot use {}", folder.display()))?;
    if !metadata.is_dir() {
        bail!("{} is not a folder; choose another one with the key \"data\"", folder.display());
    }
    refuse_open_to_others(folder, &metadata, 0o022, "chmod 700")
}

/// Reads a private file; `None` if there is none.
pub fn read(path: &Path) -> anyhow::Result<Option<String>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display()))?,
    };
    let metadata = file.metadata().with_context(|| format!("cannot read {}", path.display()))?;
    refuse_open_to_others(path, &metadata, 0o077, "chmod 600")?;
    if metadata.len() > FILE_MAX {
        bail!("{} is larger than anything that is kept there", path.display());
    }
    let mut text = String::new();
    file.read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Some(text))
}

/// Writes a private file: after a power cut there is the old content or the new, nothing between.
pub fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let temporary = path.with_extension("new");
        // One that a crash left behind has unknown permissions.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    write().with_context(|| format!("cannot write {}; check free space and permissions", path.display()))
}

/// `others` are the permission bits that nobody else may have.
fn refuse_open_to_others(
    path: &Path,
    metadata: &fs::Metadata,
    others: u32,
    remedy: &str,
) -> anyhow::Result<()> {
    let mode = metadata.permissions().mode() & 0o777;
    if mode & others != 0 {
        bail!(
            "{path} can be used by other users (mode {mode:03o}) and is therefore not used; if nobody \
             else had access, run: {remedy} {path}",
            path = path.display()
        );
    }
    let (owner, me) = (metadata.uid(), effective_user());
    if me.is_some_and(|me| me != owner && me != 0) {
        bail!("{} belongs to user {owner}; run the agent as that user", path.display());
    }
    Ok(())
}

/// The user that this process acts as, from the kernel; `None` where there is no /proc.
fn effective_user() -> Option<u32> {
    fs::metadata("/proc/self").ok().map(|metadata| metadata.uid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_private_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("a/b");
        private_folder(&data).unwrap();
        assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
        let path = data.join("x.json");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, "one").unwrap();
        fs::write(path.with_extension("new"), "left by a crash").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn files_and_folders_open_to_others_are_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.json");
        write(&path, "{}").unwrap();
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let message = read(&path).unwrap_err().to_string();
            assert!(message.contains(&format!("chmod 600 {}", path.display())), "{message}");
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o770)).unwrap();
        let message = private_folder(folder.path()).unwrap_err().to_string();
        assert!(message.contains("mode 770") && message.contains("chmod 700"), "{message}");
    }
}
