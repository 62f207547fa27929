//! A relay that captures everything, an HTTP listener in front of it, and keys of two applications.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

use postrider_api::{
    Caller, Captured, Health, HttpOptions, Keys, Server, SpoolView, Unavailable, Wanted, start_http,
};
use postrider_engine::operate::{Request, Response};
use postrider_ingress::{Answers, Submission};
use postrider_model::control::{
    ApiKey, Application, ApplicationDraft, Control, ControlParts, Environment, InstanceMode, KeyHash,
    KeyRefusal, Scope, Scopes, Tenant,
};
use postrider_model::snapshot::{Delivery, Listener, Route, Snapshot};
use postrider_model::{ApplicationId, KeyId, TenantId, Timestamp};
use postrider_relay::{Relay, RelayConfig};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Sends and reads as `*@example.com`.
pub const KEY: &str = "pr_test_shop";
/// The same application, but may not send.
pub const READER: &str = "pr_test_reader";
/// The same, from an address that is not ours.
pub const ELSEWHERE: &str = "pr_test_elsewhere";
/// Another application.
pub const OTHER: &str = "pr_test_other";
/// An application whose kill switch was thrown.
pub const DISABLED: &str = "pr_test_disabled";

const PATIENCE: Duration = Duration::from_secs(30);

/// How the tests hash: the number of the key.
fn hash(key: &str) -> KeyHash {
    let known = [KEY, READER, ELSEWHERE, OTHER, DISABLED];
    KeyHash([u8::try_from(known.iter().position(|known| *known == key).unwrap_or(99)).unwrap(); 32])
}

fn control(now: Timestamp, mode: InstanceMode) -> Control {
    let tenant = TenantId::new(now, 1);
    let application = |number: u128, name: &str, from: &str, enabled: bool| {
        let draft = ApplicationDraft {
            name: Some(name.into()),
            from: Some(vec![from.into()]),
            ..ApplicationDraft::default()
        };
        let mut settings = draft.create().unwrap();
        settings.enabled = enabled;
        Application {
            id: ApplicationId::new(now, number),
            tenant,
            settings,
            version: 1,
            created_at: now,
            updated_at: now,
        }
    };
    let applications = vec![
        application(1, "shop", "*@example.com", true),
        application(2, "other", "*@example.org", true),
        application(3, "old", "*@example.com", false),
    ];
    let key = |number: u128, text: &str, application: usize, scopes: Scopes| ApiKey {
        id: KeyId::new(now, number),
        tenant,
        application: Some(applications[application].id),
        name: "".into(),
        environment: if mode == InstanceMode::Live { Environment::Live } else { Environment::Test },
        hash: hash(text),
        hint: "pr_test_".into(),
        scopes,
        networks: Vec::new(),
        created_at: now,
        expires_at: None,
        revoked_at: None,
    };
    let usual = Scopes::OF_AN_APPLICATION;
    let mut elsewhere = key(3, ELSEWHERE, 0, usual);
    elsewhere.networks = vec!["192.0.2.0/24".parse().unwrap()];
    let keys = vec![
        key(1, KEY, 0, usual),
        key(2, READER, 0, [Scope::Read].into_iter().collect()),
        elsewhere,
        key(4, OTHER, 1, usual),
        key(5, DISABLED, 2, usual),
    ];
    Control::new(ControlParts {
        mode,
        tenants: vec![Tenant { id: tenant, name: "default".into(), created_at: now }],
        applications,
        keys,
        ..ControlParts::default()
    })
    .unwrap()
}

#[derive(Clone)]
struct Behind(Arc<Relay>);

impl Keys for Behind {
    fn caller(&self, key: &str, client: IpAddr) -> Result<Caller, KeyRefusal> {
        let control = self.0.control();
        let key = control.key(&hash(key), client, self.0.clock().now())?.clone();
        let application = key.application.and_then(|id| control.application(id)).cloned();
        Ok(Caller { key, application })
    }
}

impl postrider_api::Relay for Behind {
    fn submit(&self, messages: Vec<Submission>, answers: &Answers) {
        self.0.submit(messages, answers);
    }

    fn now(&self) -> Timestamp {
        self.0.clock().now()
    }

    async fn ask(&self, request: Request) -> Result<Response, Unavailable> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.0.ask(&request, move |response| drop(answer.send(response)));
        answered.await.map_err(|_| Unavailable("it stops".into()))
    }

    async fn captured(&self, wanted: Wanted) -> Result<Vec<Captured>, Unavailable> {
        let filter =
            postrider_vault::Filter { account: wanted.account, ..postrider_vault::Filter::default() };
        Ok(self.0.sandbox().list(&filter, wanted.limit.unwrap()).iter().map(|kept| view(kept)).collect())
    }

    async fn captured_one(&self, id: String) -> Result<Option<Captured>, Unavailable> {
        Ok(self.0.sandbox().show(&id).unwrap_or(None).map(|(kept, _)| view(&kept)))
    }

    async fn captured_content(&self, id: String) -> Result<Option<Vec<u8>>, Unavailable> {
        Ok(self.0.sandbox().show(&id).unwrap_or(None).map(|(_, content)| content))
    }

    async fn captured_delete(&self, id: Option<String>) -> Result<u64, Unavailable> {
        Ok(u64::from(self.0.sandbox().delete(&id.unwrap()).unwrap()))
    }

    fn health(&self) -> Health {
        Health {
            status: "ok".into(),
            version: "0".into(),
            hostname: "relay.example".into(),
            pid: 1,
            uptime_s: 1,
            shards: 2,
            listeners: Vec::new(),
            http: None,
            routes: Vec::new(),
        }
    }

    fn spool(&self) -> Option<SpoolView> {
        None
    }

    fn metrics(&self) -> String {
        String::new()
    }

    async fn reload(&self) -> Result<Vec<String>, String> {
        Ok(Vec::new())
    }
}

fn view(kept: &postrider_vault::Captured) -> Captured {
    Captured {
        id: kept.id.clone(),
        accepted_at: Timestamp::from_micros(kept.accepted_at_us),
        account: kept.account.clone(),
        sender: kept.sender.clone(),
        recipients: kept.recipients.clone(),
        from: kept.from.clone(),
        subject: kept.subject.clone(),
        size: kept.size,
    }
}

/// Stopped and removed when it is dropped.
pub struct Room {
    relay: Arc<Relay>,
    address: SocketAddr,
    server: Option<Server>,
    _dir: tempfile::TempDir,
}

impl Room {
    pub fn new() -> Self {
        Room::with(InstanceMode::Sandbox, Vec::new(), Vec::new(), 8 << 20)
    }

    /// With listeners and routes.
    pub fn with(
        mode: InstanceMode,
        listeners: Vec<Arc<Listener>>,
        routes: Vec<Arc<Route>>,
        segment_size_bytes: u32,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = Snapshot {
            hostname: "relay.example".parse().unwrap(),
            listeners,
            accounts: Vec::new(),
            routes,
            delivery: Delivery::default(),
        };
        let config = RelayConfig {
            control: Arc::new(control(Timestamp::from_secs(1_000_000), mode)),
            shards: 2,
            segment_size_bytes,
            ..RelayConfig::new(Arc::new(snapshot), dir.path())
        };
        let relay = Arc::new(Relay::start(config).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = start_http(listener, HttpOptions::default(), Behind(relay.clone())).unwrap();
        Room { relay, address, server: Some(server), _dir: dir }
    }

    pub fn relay(&self) -> &Relay {
        &self.relay
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn in_an_hour(&self) -> String {
        (self.relay.clock().now() + Duration::from_secs(3_600)).to_string()[..19].to_owned() + "Z"
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.request("POST", path, KEY, "application/json", body.to_string().as_bytes())
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        self.request("GET", path, KEY, "", b"")
    }

    /// One request on a connection of its own; the answer as JSON, or as a text if it is none.
    pub fn request(&self, method: &str, path: &str, key: &str, kind: &str, body: &[u8]) -> (u16, Value) {
        let key = if key.is_empty() { String::new() } else { format!("Authorization: Bearer {key}\r\n") };
        let kind = if kind.is_empty() { String::new() } else { format!("Content-Type: {kind}\r\n") };
        self.request_with(method, path, &(key + &kind), body)
    }

    /// The same with these header lines.
    pub fn request_with(&self, method: &str, path: &str, lines: &str, body: &[u8]) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{lines}\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) =
            answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{method} {path}: {answer}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_else(|_| json!(body)))
    }

    /// Waits until the sandbox lists so many messages, and gives the list.
    pub fn until_captured(&self, count: usize) -> Value {
        let start = Instant::now();
        loop {
            let (_, listed) = self.get("/v1/sandbox/messages");
            if listed["items"].as_array().unwrap().len() >= count {
                return listed;
            }
            assert!(start.elapsed() < PATIENCE, "{listed}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
        }
        self.relay.stop(Duration::from_secs(5));
    }
}
