//! Names: a real authoritative server (NSD) behind a forwarder that makes some names slow or silent.

use crate::site::{Site, packages, until};
use anyhow::Result;
use enclosure::{Room, Running, User};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A name with this label is answered late.
const SLOW: &[u8] = b"\x04slow";
/// How late.
const DELAY: Duration = Duration::from_millis(1500);
/// A name with this label is never answered.
const SILENT: &[u8] = b"\x06silent";
/// NSD answers within this time of its start.
const START: Duration = Duration::from_secs(20);

/// Running name servers. They end when this is dropped.
#[derive(Debug)]
pub struct Names {
    /// Where to ask.
    pub address: SocketAddr,
    nsd: Running,
    stop: Arc<AtomicBool>,
    forwarder: Option<JoinHandle<()>>,
}

impl Names {
    /// Serves zones: each a name and its records in master-file form, the SOA and NS records being put before
    /// them. A zone without records is configured but has no content, as after a failed transfer: SERVFAIL.
    ///
    /// # Errors
    /// NSD cannot be unpacked or started here.
    pub fn start(site: &Site, zones: &[(&str, &str)]) -> Result<Names> {
        let packages = packages("nsd", &["nsd"])?;
        let room = Room::build(
            &site.path("nsd"),
            &packages,
            &[User { name: "nsd", id: 960, home: "/nonexistent" }],
        )?;
        let own = site.free(53);
        let mut config = format!(
            "server:\n  ip-address: {}@{}\n  hide-version: yes\n  zonesdir: \"/etc/nsd\"\n  database: \"\"\n  \
             pidfile: \"/run/nsd.pid\"\n  username: nsd\n  xfrdir: \"/tmp\"\n  xfrdfile: \"/var/lib/xfrd.state\"\n  \
             zonelistfile: \"/var/lib/zone.list\"\nremote-control:\n  control-enable: no\n",
            own.ip(),
            own.port()
        );
        for (zone, records) in zones {
            config += &format!("zone:\n  name: \"{zone}\"\n  zonefile: \"{zone}.zone\"\n");
            if !records.is_empty() {
                let head = format!(
                    "$ORIGIN {zone}.\n$TTL 60\n@ IN SOA ns.{zone}. hostmaster.{zone}. 1 3600 600 86400 60\n@ IN NS ns.{zone}.\nns IN A {}\n",
                    own.ip()
                );
                room.write(&format!("/etc/nsd/{zone}.zone"), head + records + "\n")?;
            }
        }
        room.write("/etc/nsd/nsd.conf", config)?;
        let nsd = room.start("nsd -d -c /etc/nsd/nsd.conf &\nwait\n")?;
        let socket = UdpSocket::bind((site.ip(54), 0))?;
        let address = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let forwarder = std::thread::spawn({
            let stop = stop.clone();
            move || forward(&socket, own, &stop)
        });
        let names = Names { address, nsd, stop, forwarder: Some(forwarder) };
        let probe = UdpSocket::bind((site.ip(1), 0))?;
        probe.set_read_timeout(Some(Duration::from_millis(200)))?;
        until("NSD answers", START, || {
            // A question for the root's NS; any answer will do.
            probe
                .send_to(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01", own)
                .ok()?;
            let mut answer = [0; 512];
            probe.recv_from(&mut answer).ok()
        });
        Ok(names)
    }

    /// What NSD printed.
    #[must_use]
    pub fn output(&self) -> String {
        self.nsd.output()
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(forwarder) = self.forwarder.take() {
            let _ = forwarder.join();
        }
    }
}

/// Passes questions on, each by a thread of its own; tests ask few.
fn forward(socket: &UdpSocket, to: SocketAddr, stop: &AtomicBool) {
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut question = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        let Ok((size, from)) = socket.recv_from(&mut question) else { continue };
        let question =
            Question { sent: question[..size].to_vec(), lower: question[..size].to_ascii_lowercase() };
        let back = socket.try_clone().unwrap();
        std::thread::spawn(move || answer(&back, from, to, &question));
    }
}

fn answer(back: &UdpSocket, from: SocketAddr, to: SocketAddr, question: &Question) {
    if question.has(SILENT) {
        return;
    }
    if question.has(SLOW) {
        std::thread::sleep(DELAY);
    }
    let own = UdpSocket::bind((to.ip(), 0)).unwrap();
    own.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut reply = [0; 4096];
    if own.send_to(&question.sent, to).is_ok()
        && let Ok(size) = own.recv(&mut reply)
    {
        let _ = back.send_to(&reply[..size], from);
    }
}

struct Question {
    sent: Vec<u8>,
    lower: Vec<u8>,
}

impl Question {
    fn has(&self, label: &[u8]) -> bool {
        self.lower.windows(label.len()).any(|part| part == label)
    }
}
