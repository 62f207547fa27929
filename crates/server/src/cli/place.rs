//! Where the relay is that a command speaks to.

use crate::config::{self, Loaded, Problems};
use postrider_api::{Client, SOCKET_NAME};
use std::path::{Path, PathBuf};

/// Where packages keep the state of a relay.
const PACKAGED_DATA_DIR: &str = "/var/lib/postrider";

/// Which relay is meant.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Which relay")]
pub struct Place {
    /// The configuration file of the relay
    #[arg(long, global = true, value_name = "FILE", env = "POSTRIDER_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// The data directory of the relay; wins over the configuration file
    #[arg(long, global = true, value_name = "DIR", env = "POSTRIDER_DATA_DIR", hide_env_values = true)]
    pub data_dir: Option<PathBuf>,
}

impl Place {
    /// Reads the configuration.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn load(&self) -> Result<Loaded, Problems> {
        config::load(self.config.as_deref(), self.data_dir.as_deref())
    }

    /// The data directory, read from a file that need not be right otherwise: a running relay must be
    /// reachable while its next configuration is being written.
    #[must_use]
    pub(crate) fn data_dir(&self) -> PathBuf {
        if let Some(data_dir) = &self.data_dir {
            return data_dir.clone();
        }
        if let Some(file) = &self.config {
            return config::data_dir_of(file);
        }
        let here = Path::new(config::DATA_DIR_DEFAULT);
        let packaged = Path::new(PACKAGED_DATA_DIR);
        if !here.join(SOCKET_NAME).exists() && packaged.join(SOCKET_NAME).exists() {
            return packaged.to_owned();
        }
        here.to_owned()
    }

    /// A client of the relay.
    #[must_use]
    pub(crate) fn client(&self) -> Client {
        Client::of_data_dir(&self.data_dir())
    }

    /// The same place as arguments, to be shown.
    #[must_use]
    pub(crate) fn arguments(&self) -> String {
        let mut out = String::new();
        for (name, value) in [("--config", &self.config), ("--data-dir", &self.data_dir)] {
            if let Some(value) = value {
                out.push_str(&format!(" {name} {}", value.display()));
            }
        }
        out
    }
}
