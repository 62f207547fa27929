//! A test's own addresses and folder, and work that is done once for all tests.

use enclosure::Packages;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// One test's part of the loopback network and of the disk.
#[derive(Debug)]
pub struct Site {
    folder: TempDir,
    block: [u8; 2],
}

impl Site {
    /// A fresh folder beside the built programs, and 254 loopback addresses that no other test uses.
    #[must_use]
    pub fn new() -> Site {
        let scratch = target_folder().join("blackbox");
        fs::create_dir_all(&scratch).unwrap();
        let folder = tempfile::Builder::new().prefix("site-").tempdir_in(scratch).unwrap();
        // Servers that gave up root must reach their files.
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        // 127.1.0.0 to 127.254.255.0, by the process and the number of its sites.
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let index = (std::process::id() + number * 31_337) % (254 * 256);
        let block = [u8::try_from(1 + index / 256).unwrap(), u8::try_from(index % 256).unwrap()];
        Site { folder, block }
    }

    /// The test's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file in the folder.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// One of the test's addresses.
    #[must_use]
    pub fn ip(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.block[0], self.block[1], host)
    }

    /// A free port of one of them.
    #[must_use]
    pub fn free(&self, host: u8) -> SocketAddr {
        TcpListener::bind((self.ip(host), 0)).unwrap().local_addr().unwrap()
    }

    /// A port that is free on each of the first few addresses: where all mail exchangers listen.
    #[must_use]
    pub fn free_port(&self, hosts: u8) -> u16 {
        for _ in 0..100 {
            let port = self.free(1).port();
            if (1..=hosts).all(|host| TcpListener::bind((self.ip(host), port)).is_ok()) {
                return port;
            }
        }
        panic!("no port is free on {hosts} addresses");
    }

    /// A self-made certificate for these names and its key, as PEM files.
    #[must_use]
    pub fn certificate(&self, names: &[&str]) -> (PathBuf, PathBuf) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let (_, certificate, key) = storm::tls::Identity::self_signed(&names).unwrap();
        (self.write("cert.pem", certificate), self.write("key.pem", key))
    }
}

impl Default for Site {
    fn default() -> Site {
        Site::new()
    }
}

/// Looks until the condition gives something; panics with the words when the bound is reached.
pub fn until<T>(what: &str, bound: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(started.elapsed() < bound, "{what}: not within {bound:?}");
        std::thread::sleep(LOOK);
    }
}

/// The target directory in which this test was built.
pub(crate) fn target_folder() -> PathBuf {
    // …/target/PROFILE/deps/TEST
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(3).unwrap().to_owned()
}

/// A folder that tests and runs share: unpacked packages and the like.
#[must_use]
pub fn shared_folder(name: &str) -> PathBuf {
    let folder = target_folder().join("blackbox").join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Debian packages, unpacked once for all tests.
///
/// # Errors
/// No root, no apt-get, no such package.
pub fn packages(name: &str, packages: &[&str]) -> anyhow::Result<Packages> {
    Packages::unpack(&shared_folder("packages").join(name), packages)
}
