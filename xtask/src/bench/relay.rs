//! The relays that are compared: how each is started, told to try again, and stopped.

use super::measure::Processes;
use super::peers;
use super::workload::{PASSWORD, USER, Workload};
use anyhow::{Context, Result, bail, ensure};
use enclosure::Running as Room;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A relay listens within this time.
const START: Duration = Duration::from_secs(20);
/// A relay that is told to stop is gone within this time; it is killed then.
const STOP: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Postrider,
    Yardstick,
    Postfix,
    Exim,
    OpenSmtpd,
}

/// What is built, unpacked and made before any run.
pub(crate) struct Kit {
    pub(crate) storm: PathBuf,
    pub(crate) postrider: Option<PathBuf>,
    pub(crate) yardstick: Option<PathBuf>,
    /// Where the peers are unpacked.
    pub(crate) packages: PathBuf,
    pub(crate) scratch: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Of [`PASSWORD`].
    pub(crate) verifier: String,
}

/// Addresses and files of one run.
pub(crate) struct Site<'a> {
    pub(crate) relay: SocketAddr,
    pub(crate) sink: SocketAddr,
    pub(crate) workload: Workload,
    pub(crate) certificate: &'a Path,
    pub(crate) key: &'a Path,
}

/// A relay at work.
pub(crate) struct Relay {
    kind: Kind,
    body: Body,
    pub(crate) relay: SocketAddr,
    pub(crate) sink: SocketAddr,
    folder: PathBuf,
}

enum Body {
    Process { child: Child, binary: PathBuf },
    Room(Room),
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Postrider => "Postrider",
            Kind::Yardstick => "yardstick",
            Kind::Postfix => "Postfix",
            Kind::Exim => "Exim",
            Kind::OpenSmtpd => "OpenSMTPD",
        }
    }

    /// The yardstick knows neither TLS nor AUTH, and gives up a message whose next hop is away. Debian's OpenSMTPD
    /// fails to sign its TLS handshakes, and does not come back at once to a host that was away.
    pub(crate) fn can(self, workload: Workload) -> bool {
        let plain = matches!(workload, Workload::Small20 | Workload::Small200 | Workload::Large);
        plain || !matches!(self, Kind::Yardstick | Kind::OpenSmtpd)
    }
}

impl Relay {
    /// Starts a relay with an empty queue on free ports and waits until it greets.
    pub(crate) fn start(kind: Kind, workload: Workload, kit: &Kit) -> Result<Relay> {
        let folder = kit.scratch.join(kind.name());
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot clear {}", folder.display()))?;
        }
        let (relay, sink) = (free_address()?, free_address()?);
        let site = Site { relay, sink, workload, certificate: &kit.certificate, key: &kit.key };
        let packages = &kit.packages;
        let body = match kind {
            Kind::Postrider => postrider(&folder, kit, &site)?,
            Kind::Yardstick => yardstick(&folder, kit, &site)?,
            Kind::Postfix => Body::Room(peers::postfix(&folder, packages, &site)?),
            Kind::Exim => Body::Room(peers::exim(&folder, packages, &site)?),
            Kind::OpenSmtpd => Body::Room(peers::opensmtpd(&folder, packages, &site)?),
        };
        let mut started = Relay { kind, body, relay, sink, folder };
        started.wait_until_it_listens()?;
        Ok(started)
    }

    pub(crate) fn processes(&self) -> Processes {
        match &self.body {
            Body::Process { child, .. } => Processes::One(child.id()),
            // A room that has ended has no processes, as an empty name has none.
            Body::Room(room) => Processes::Namespace(room.namespace().unwrap_or_default()),
        }
    }

    /// Makes it try all that waits, now.
    pub(crate) fn retry_all(&self) -> Result<()> {
        match (&self.body, self.kind) {
            (Body::Process { binary, .. }, Kind::Postrider) => {
                let config = self.folder.join("postrider.toml");
                let mut command = Command::new(binary);
                command.args(["queue", "retry", "--all", "--config"]).arg(config).stdout(Stdio::null());
                ensure!(command.status()?.success(), "postrider queue retry failed");
                Ok(())
            }
            (Body::Process { .. }, _) => Ok(()),
            (Body::Room(room), Kind::Postfix) => peers::flush(room, "postqueue -c /etc/postfix -f"),
            // A queue runner works through one message after the other; several do so side by side.
            (Body::Room(room), Kind::Exim) => {
                let runners = "for n in 1 2 3 4 5 6 7 8 9 10; do exim4 -qff & done; wait";
                peers::flush(room, &format!("({runners}) >/dev/null 2>&1 &"))
            }
            (Body::Room(_), _) => Ok(()),
        }
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let started = Instant::now();
        while TcpStream::connect_timeout(&self.relay, Duration::from_secs(1)).is_err() {
            if let Body::Process { child, .. } = &mut self.body
                && let Some(status) = child.try_wait()?
            {
                bail!("{} ended: {status}: {}", self.kind.name(), self.output());
            }
            ensure!(started.elapsed() < START, "{} does not listen: {}", self.kind.name(), self.output());
            std::thread::sleep(Duration::from_millis(50));
        }
        // The connection that looked is gone before anything is measured.
        std::thread::sleep(Duration::from_millis(300));
        Ok(())
    }

    fn output(&self) -> String {
        match &self.body {
            Body::Process { .. } => fs::read_to_string(self.folder.join("output")).unwrap_or_default(),
            Body::Room(room) => room.output(),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Body::Process { child, .. } = &mut self.body {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let asked = Instant::now();
            while asked.elapsed() < STOP && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        // What the yardstick preallocates is too large to let lie about.
        let _ = fs::remove_file(self.folder.join("log"));
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn process(folder: &Path, binary: &Path, command: &mut Command) -> Result<Body> {
    let output = fs::File::create(folder.join("output"))?;
    let child = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn();
    let child = child.with_context(|| format!("cannot start {}", binary.display()))?;
    Ok(Body::Process { child, binary: binary.to_owned() })
}

fn yardstick(folder: &Path, kit: &Kit, site: &Site<'_>) -> Result<Body> {
    let binary = kit.yardstick.as_deref().context("no yardstick was given")?;
    fs::create_dir_all(folder)?;
    let mut command = Command::new(binary);
    command.args([site.relay.to_string(), site.sink.to_string()]).arg(folder.join("log"));
    process(folder, binary, &mut command)
}

fn postrider(folder: &Path, kit: &Kit, site: &Site<'_>) -> Result<Body> {
    let binary = kit.postrider.as_deref().context("postrider is not built")?;
    fs::create_dir_all(folder)?;
    let tls = if site.workload.tls_in() {
        format!("tls = {{ certificate = {:?}, key = {:?} }}\n", site.certificate, site.key)
    } else {
        String::new()
    };
    let (listener, account) = if site.workload.auth() {
        let verifier = &kit.verifier;
        (
            "protocol = \"submission\"\n",
            format!("[[account]]\nname = \"{USER}\"\npassword = \"{verifier}\"\nfrom = [\"*\"]\n"),
        )
    } else {
        ("protocol = \"smtp\"\nlegacy = { clients = [\"127.0.0.0/8\"], from = [\"*\"] }\n", String::new())
    };
    let security = if site.workload.tls_out() { "encrypted" } else { "opportunistic" };
    let config = folder.join("postrider.toml");
    fs::write(
        &config,
        format!(
            "hostname = \"relay.example.test\"\ndata_dir = {data:?}\n\
             [[listener]]\nname = \"relay\"\naddress = \"{relay}\"\nmax_message_size = \"50 MiB\"\n{listener}{tls}\
             {account}[[route]]\ndomains = [\"*\"]\nto = [\"smtp://{sink}\"]\ntls = \"{security}\"\n\
             [delivery]\nretry = [\"1m\", \"5m\", \"15m\", \"30m\", \"1h\"]\nexpire = \"5d\"\nconnections_per_site = 20\n",
            data = folder.join("data"),
            relay = site.relay,
            sink = site.sink,
        ),
    )?;
    let mut command = Command::new(binary);
    command.args(["serve", "--config"]).arg(&config);
    process(folder, binary, &mut command)
}

/// The SCRAM verifier of [`PASSWORD`], as the relay's own command makes it.
pub(crate) fn verifier(postrider: &Path) -> Result<String> {
    let mut child = Command::new(postrider)
        .args(["password", "--stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start postrider")?;
    child.stdin.take().context("no standard input")?.write_all(format!("{PASSWORD}\n").as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "postrider password failed");
    let text = String::from_utf8(output.stdout)?;
    let verifier = text.split(['"', '\n', ' ']).find(|word| word.starts_with("scram-sha-256:"));
    Ok(verifier.context("postrider password printed no verifier")?.to_owned())
}
