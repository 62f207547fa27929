//! The last answer on disk: what a start reads when the database cannot be opened (design P5).

use postrider_model::control::{Control, ControlParts};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// The copy's name in the data directory.
const FILE_NAME: &str = "control.snapshot";

/// Writes the newest answer whenever there is one, on a thread of its own: a change does not wait for it.
pub(crate) struct Keeper {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Desk {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    newest: Option<Arc<Control>>,
    ends: bool,
}

/// Reads the copy, if there is one.
///
/// # Errors
/// When it cannot be read as what it is.
pub(crate) fn read(dir: &Path) -> io::Result<Option<Control>> {
    let text = match std::fs::read(dir.join(FILE_NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    let parts: ControlParts = serde_json::from_slice(&text)?;
    Control::new(parts).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn write(path: &Path, control: &Control) -> io::Result<()> {
    let nascent = path.with_extension("snapshot.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&nascent)?;
    file.write_all(&serde_json::to_vec(&control.parts())?)?;
    file.sync_all()?;
    std::fs::rename(&nascent, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

impl Keeper {
    pub(crate) fn start(dir: &Path) -> io::Result<Self> {
        let desk = Arc::<Desk>::default();
        let path: PathBuf = dir.join(FILE_NAME);
        let thread = std::thread::Builder::new().name("snapshot".to_owned()).spawn({
            let desk = desk.clone();
            move || {
                while let Some(control) = desk.take() {
                    if let Err(error) = write(&path, &control) {
                        tracing::warn!(%error, path = %path.display(), "the copy of the control plane was not written");
                    }
                }
            }
        })?;
        Ok(Keeper { desk, thread: Some(thread) })
    }

    /// Has this written, unless a newer one comes first.
    pub(crate) fn keep(&self, control: Arc<Control>) {
        self.desk.state.lock().unwrap_or_else(PoisonError::into_inner).newest = Some(control);
        self.desk.bell.notify_one();
    }
}

impl Desk {
    fn take(&self) -> Option<Arc<Control>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(control) = state.newest.take() {
                return Some(control);
            }
            if state.ends {
                return None;
            }
            state = self.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Keeper {
    /// Writes what is still to be written.
    fn drop(&mut self) {
        self.desk.state.lock().unwrap_or_else(PoisonError::into_inner).ends = true;
        self.desk.bell.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
