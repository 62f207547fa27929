//! The secrets of a data directory: made once, kept in a file that only its owner reads.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const FILE_NAME: &str = "instance.key";
const SIZE: usize = 64;

/// Secrets of this relay.
pub(crate) struct Instance {
    /// Permutes numbers into ids.
    pub(crate) id_key: [u8; 16],
    /// Makes up salts for unknown users and keys the memory of passwords.
    pub(crate) auth_secret: [u8; 32],
    /// Begins jitter and shuffling.
    pub(crate) seed: u64,
    /// What the checksums of the log start from.
    pub(crate) spool_salt: u64,
}

impl Instance {
    /// Reads the secrets of a directory, or makes them.
    ///
    /// # Errors
    /// When the file cannot be read, written or made durable, or is not whole.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(FILE_NAME);
        let mut octets = [0; SIZE];
        match File::open(&path) {
            Ok(mut file) => file.read_exact(&mut octets).map_err(|_| {
                let text = format!(
                    "{} is not whole; restore it: without it, ids of old messages are unknown",
                    path.display()
                );
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                aws_lc_rs::rand::fill(&mut octets)
                    .map_err(|_| io::Error::other("the system has no randomness"))?;
                let temporary = dir.join(format!("{FILE_NAME}.new"));
                let mut file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&temporary)?;
                file.write_all(&octets)?;
                file.sync_all()?;
                std::fs::rename(&temporary, &path)?;
                File::open(dir)?.sync_all()?;
            }
            Err(error) => return Err(error),
        }
        let mut id_key = [0; 16];
        id_key.copy_from_slice(&octets[..16]);
        let mut auth_secret = [0; 32];
        auth_secret.copy_from_slice(&octets[16..48]);
        let mut seed = [0; 8];
        seed.copy_from_slice(&octets[48..56]);
        let mut salt = [0; 8];
        salt.copy_from_slice(&octets[56..]);
        let (seed, spool_salt) = (u64::from_le_bytes(seed), u64::from_le_bytes(salt));
        Ok(Instance { id_key, auth_secret, seed, spool_salt })
    }
}
