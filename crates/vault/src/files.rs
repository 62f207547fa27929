//! Files that are whole or not there, under names that lead nowhere else.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Octets of an id.
const ID_SIZE_MAX: usize = 128;
/// What unfinished files begin with; no id does.
pub(crate) const UNFINISHED: &str = ".unfinished-";

/// The file of an id, if the id is fit to be a file's name on any system.
pub(crate) fn path(dir: &Path, id: &str, extension: &str) -> io::Result<PathBuf> {
    let fit = (1..=ID_SIZE_MAX).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        && !id.starts_with('-');
    if fit {
        Ok(dir.join(format!("{id}.{extension}")))
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "an id has letters, digits, _ and - only, at most 128",
        ))
    }
}

/// Writes a file under another name, syncs it, and gives it its own. Its name is durable after
/// [`sync_dir`].
pub(crate) fn write(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let unfinished = path.with_file_name(format!("{UNFINISHED}{name}"));
    let written = (|| {
        let mut file = File::create(&unfinished)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()?;
        fs::rename(&unfinished, path)
    })();
    if written.is_err() {
        // Nothing more can be done about a file that cannot even be removed; the next start tries again.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes a file; true if it was there.
pub(crate) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
