//! The configuration file: read, checked as a whole, turned into the [`Snapshot`] of the data plane.

mod build;
pub mod problem;
mod read;
pub mod schema;
pub mod show;
pub mod value;

pub use build::Surroundings;
pub use problem::{Problem, Problems, Severity};

use postrider_model::Snapshot;
use postrider_model::snapshot::{Cidr, TlsFiles};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The data directory where nothing names another one.
pub const DATA_DIR_DEFAULT: &str = "postrider-data";

/// Everything that a file says, checked, with defaults for what it does not say.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the data plane reads; may change on reload.
    pub snapshot: Snapshot,
    /// Where state lives.
    pub data_dir: PathBuf,
    /// Event loops; 0 for one on each core.
    pub shards: usize,
    /// Octets of a segment of the log.
    pub segment_size_bytes: u32,
    /// Octets that sessions and fresh content may hold in memory.
    pub memory_max_bytes: usize,
    /// How the log's directory is kept in order.
    pub upkeep: postrider_disk::Upkeep,
    /// PEM files of further authorities that vouch for next hops.
    pub authorities: Vec<PathBuf>,
    /// Where HTTP is served; `None` is nowhere.
    pub http: Option<HttpSettings>,
}

/// The HTTP API for applications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// Certificate files, if TLS is spoken.
    pub tls: Option<TlsFiles>,
    /// Networks whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Cidr>,
}

/// A configuration that may be used, with what it was made from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The checked form.
    pub settings: Settings,
    /// Warnings only.
    pub problems: Problems,
    /// The values as written.
    pub written: read::Section,
}

/// Reads `file`, or without one makes the sandbox relay that a newcomer starts with.
///
/// # Errors
/// Everything that is wrong with the file, or why it cannot be read.
pub fn load(file: Option<&Path>, data_dir: Option<&Path>) -> Result<Loaded, Problems> {
    let Some(file) = file else {
        return check(Path::new("(no configuration file)"), "", &surroundings(Path::new("."), data_dir));
    };
    match std::fs::read_to_string(file) {
        Ok(source) => check(file, &source, &surroundings(directory_of(file), data_dir)),
        Err(error) => {
            let mut problems = Problems::new(file, "");
            problems.error(
                &(0..0),
                format!("cannot read the file: {error}"),
                "give its path with --config FILE",
            );
            Err(problems)
        }
    }
}

/// The data directory that a file names, whatever else is wrong with it.
#[must_use]
pub fn data_dir_of(file: &Path) -> PathBuf {
    let directory = directory_of(file);
    let source = std::fs::read_to_string(file).unwrap_or_default();
    let written = read::read(&source, &mut Problems::new(file, &source));
    directory.join(written.text("data_dir").map_or(DATA_DIR_DEFAULT, |(path, _)| path))
}

fn directory_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn surroundings(directory: &Path, data_dir: Option<&Path>) -> Surroundings {
    Surroundings {
        hostname: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default(),
        directory: directory.to_owned(),
        data_dir: data_dir.map(Path::to_owned),
    }
}

/// Checks a file's text.
///
/// # Errors
/// Everything that is wrong with it.
pub fn check(file: &Path, source: &str, surroundings: &Surroundings) -> Result<Loaded, Problems> {
    let mut problems = Problems::new(file, source);
    let written = read::read(source, &mut problems);
    let settings = build::build(&written, surroundings, &mut problems);
    if problems.has_errors() { Err(problems) } else { Ok(Loaded { settings, problems, written }) }
}

#[cfg(test)]
mod tests;
