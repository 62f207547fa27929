//! The API over a real Unix socket, with a relay that only remembers what it was asked.

use postrider_api::{
    BindError, Captured, Client, ClientError, Health, ListenerView, Relay, Server, SpoolView, Unavailable,
    Wanted,
};
use postrider_engine::operate::{
    Act, ActView, Explanation, Filter, LaneView, RecipientView, Request, Response, Totals,
};
use postrider_ingress::{Answers, Settled, Submission};
use postrider_model::{Class, EnhancedCode, IdCipher, MessageNo, Reply, Terminal, Timestamp};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Fake {
    asked: Arc<Mutex<Vec<Request>>>,
    captured: Arc<Mutex<Vec<Captured>>>,
    waiting: usize,
    dead: bool,
}

fn recipient(number: usize) -> RecipientView {
    let cipher = IdCipher::new([7; 16]);
    let at = Timestamp::from_secs(1_000_000);
    let number = MessageNo(u64::try_from(number).unwrap());
    RecipientView {
        order: (0, 0),
        id: cipher.recipient(at, number, 0),
        message: cipher.message(at, number),
        state: "deferred",
        recipient: "bob@example.net".parse().unwrap(),
        sender: None,
        account: "app1".into(),
        class: Class::default(),
        route: "route-1".into(),
        size: 100,
        accepted_at: at,
        expires_at: at,
        attempts: 3,
        due: at,
        last_reply: None,
        last_peer: None,
        in_doubt: false,
    }
}

impl Fake {
    fn answer(&self, request: &Request) -> Response {
        match request {
            Request::List { limit, .. } => {
                Response::Recipients((0..self.waiting.min(*limit)).map(recipient).collect())
            }
            Request::Show { id } if id == "rcp_none" => Response::Recipients(Vec::new()),
            Request::Show { .. } => Response::Recipients(vec![recipient(1)]),
            Request::Act { .. } => Response::Acted(ActView { number: 4, total: 10, ..ActView::default() }),
            Request::Progress { number } => {
                Response::Acted(ActView { number: *number, done: true, ..ActView::default() })
            }
            Request::Suspensions => Response::Suspensions(Vec::new()),
            Request::Explain { target } if target == "wrong" => Response::Error("ask otherwise".into()),
            Request::Explain { target } => Response::Explanations(vec![Explanation {
                subject: target.clone(),
                recipient: None,
                route: None,
                lane: None,
                hosts: Vec::new(),
                source: None,
                because: vec!["it is dark".into()],
                transcript: Vec::new(),
            }]),
            Request::Lanes => Response::Lanes(vec![LaneView {
                key: "mx example.net".into(),
                ready: 3,
                parked: 2,
                in_flight: 1,
                connections: 1,
                window: 5,
                limit: None,
                backoff_until: None,
                failures: 0,
                last_reply: None,
                delivered: 0,
                deferred: 0,
            }]),
            Request::Totals => {
                let mut totals = Totals { recipients: 6, accepted: 9, ..Totals::default() };
                totals.count(Terminal::Delivered(postrider_model::Via::Mx), 3);
                Response::Totals(totals)
            }
        }
    }
}

impl Relay for Fake {
    fn submit(&self, messages: Vec<Submission>, answers: &Answers) {
        let refused = |message: Submission| Settled {
            tag: message.tag,
            result: Err(Reply::ours(451, EnhancedCode(4, 3, 2), "This relay takes nothing")),
        };
        answers(messages.into_iter().map(refused).collect());
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_secs(1_000_000)
    }

    async fn ask(&self, request: Request) -> Result<Response, Unavailable> {
        if self.dead {
            return Err(Unavailable("the relay stops".into()));
        }
        let response = self.answer(&request);
        self.asked.lock().unwrap().push(request);
        Ok(response)
    }

    async fn captured(&self, wanted: Wanted) -> Result<Vec<Captured>, Unavailable> {
        let all = self.captured.lock().unwrap().clone();
        let start =
            wanted.after.map_or(0, |after| all.iter().position(|m| m.id == after).map_or(0, |at| at + 1));
        Ok(all.into_iter().skip(start).take(wanted.limit.unwrap()).collect())
    }

    async fn captured_one(&self, id: String) -> Result<Option<Captured>, Unavailable> {
        Ok(self.captured.lock().unwrap().iter().find(|message| message.id == id).cloned())
    }

    async fn captured_content(&self, id: String) -> Result<Option<Vec<u8>>, Unavailable> {
        Ok(self
            .captured_one(id)
            .await?
            .map(|message| format!("Subject: {}\r\n\r\nhi\r\n", message.subject).into_bytes()))
    }

    async fn captured_delete(&self, id: Option<String>) -> Result<u64, Unavailable> {
        let mut all = self.captured.lock().unwrap();
        let before = all.len();
        all.retain(|message| id.as_ref().is_some_and(|id| *id != message.id));
        Ok(u64::try_from(before - all.len()).unwrap())
    }

    fn health(&self) -> Health {
        Health {
            status: "ok".into(),
            version: "0.1.0".into(),
            hostname: "relay.example".into(),
            pid: 1,
            uptime_s: 5,
            shards: 2,
            listeners: vec![ListenerView {
                name: "sandbox".into(),
                protocol: "smtp".into(),
                address: "127.0.0.1:2525".into(),
                tls: false,
                sandbox: true,
            }],
            http: None,
            routes: vec!["sandbox".into()],
        }
    }

    fn spool(&self) -> Option<SpoolView> {
        (!self.dead).then(|| SpoolView { health: "good", segments: 4, syncs: 7, ..SpoolView::default() })
    }

    fn metrics(&self) -> String {
        "postrider_more 1\n".into()
    }

    async fn reload(&self) -> Result<Vec<String>, String> {
        Err("postrider.toml:3:1: unknown key".into())
    }
}

struct Running {
    directory: tempfile::TempDir,
    client: Client,
    _server: Server,
}

fn running(relay: &Fake) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let listener = postrider_api::bind(directory.path()).unwrap();
    let server = postrider_api::start(listener, relay.clone()).unwrap();
    let client = Client::of_data_dir(directory.path());
    Running { directory, client, _server: server }
}

fn refusal(result: Result<serde_json::Value, ClientError>) -> (u16, String) {
    match result.unwrap_err() {
        ClientError::Refused { status, detail } => (status, detail),
        other => panic!("{other}"),
    }
}

#[test]
fn the_socket_is_for_its_owner_only() {
    let running = running(&Fake::default());
    let socket = running.directory.path().join(postrider_api::SOCKET_NAME);
    assert_eq!(std::fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
    let left: Vec<_> =
        std::fs::read_dir(running.directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [postrider_api::SOCKET_NAME]);
}

#[test]
fn two_relays_cannot_share_a_data_directory_but_a_dead_ones_socket_is_replaced() {
    let fake = Fake::default();
    let running = running(&fake);
    let error = postrider_api::bind(running.directory.path()).unwrap_err();
    assert!(matches!(error, BindError::Running(_)), "{error}");
    let Running { directory, client, _server } = running;
    _server.stop();
    assert!(matches!(client.get("/v1/health"), Err(ClientError::NotRunning(_))));
    let _again = postrider_api::start(postrider_api::bind(directory.path()).unwrap(), fake).unwrap();
    assert_eq!(client.get("/v1/health").unwrap()["status"], "ok");
}

#[test]
fn a_list_takes_a_filter_and_comes_in_pages() {
    let fake = Fake { waiting: 3, ..Fake::default() };
    let running = running(&fake);
    let page = running
        .client
        .get("/v1/queue?domain=example.net&older_than_s=60&ids=rcp_a,rcp_b&limit=2&after=rcp_0&sender=%3C%3E")
        .unwrap();
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    assert_eq!(page["next"], page["items"][1]["id"]);
    assert_eq!(page["items"][0]["recipient"], "bob@example.net");
    let filter = Filter {
        domain: Some("example.net".into()),
        older_than_s: Some(60),
        ids: vec!["rcp_a".into(), "rcp_b".into()],
        sender: Some("<>".into()),
        ..Filter::default()
    };
    let asked = fake.asked.lock().unwrap().clone();
    assert_eq!(asked, [Request::List { filter, limit: 3, after: Some("rcp_0".into()) }]);
    let last = running.client.get("/v1/queue?limit=3").unwrap();
    assert!(last["next"].is_null());
}

#[test]
fn an_order_without_a_filter_acts_on_nobody() {
    let fake = Fake::default();
    let running = running(&fake);
    let (status, detail) = refusal(running.client.post("/v1/queue", &json!({"act": "retry"})));
    assert_eq!(status, 400);
    assert!(detail.contains("acts on nobody"), "{detail}");
    assert!(fake.asked.lock().unwrap().is_empty());

    let order = json!({"act": {"cancel": {"notify": true}}, "filter": {"recipient": "*@example.net"}});
    let act = running.client.post("/v1/queue", &order).unwrap();
    assert_eq!(act["number"], 4);
    assert_eq!(running.client.get("/v1/acts/4").unwrap()["done"], true);
    running.client.post("/v1/queue", &json!({"act": {"resume": {"number": null}}})).unwrap();
    let filter = Filter { recipient: Some("*@example.net".into()), ..Filter::default() };
    let asked = fake.asked.lock().unwrap().clone();
    assert_eq!(asked[0], Request::Act { act: Act::Cancel { notify: true }, filter });
}

#[test]
fn refusals_say_what_to_do() {
    let running = running(&Fake::default());
    let get = |path: &str| refusal(running.client.get(path));
    let check = |(status, detail): (u16, String), expected: u16, part: &str| {
        assert_eq!(status, expected, "{detail}");
        assert!(detail.contains(part), "{detail}");
    };
    check(get("/v1/nowhere"), 404, "no such route");
    check(get("/v1/queue?domian=x"), 400, "unknown field `domian`");
    check(get("/v1/queue?limit=many"), 400, "limit");
    check(get("/v1/queue/rcp_none"), 404, "delivered or returned");
    check(get("/v1/explain"), 400, "say what to explain");
    check(get("/v1/explain?target=wrong"), 400, "ask otherwise");
    check(get("/v1/sandbox/messages/msg_1"), 404, "msg_1");
    check(refusal(running.client.post("/v1/queue", &json!({"act": "wave"}))), 400, "unknown variant `wave`");
    check(refusal(running.client.post("/v1/health", &json!({}))), 400, "other methods");
    check(refusal(running.client.post("/v1/reload", &json!({}))), 422, "postrider.toml:3:1");
}

#[test]
fn a_relay_that_stops_is_unavailable() {
    let running = running(&Fake { dead: true, ..Fake::default() });
    let (status, detail) = refusal(running.client.get("/v1/lanes"));
    assert_eq!((status, detail.as_str()), (503, "the relay stops"));
    assert_eq!(refusal(running.client.get("/v1/spool")).0, 504);
}

#[test]
fn the_sandbox_is_listed_read_and_emptied() {
    let message = |number: usize| Captured {
        id: format!("msg_{number}"),
        accepted_at: Timestamp::from_secs(1),
        account: String::new(),
        sender: "a@example.com".into(),
        recipients: vec!["b@example.net".into()],
        from: "Ada <a@example.com>".into(),
        subject: format!("Nº {number}"),
        size: 9,
    };
    let fake = Fake::default();
    fake.captured.lock().unwrap().extend((1..=3).map(message));
    let client = running(&fake);
    let (client, _keep) = (client.client.clone(), client);
    let page = client.get("/v1/sandbox/messages?limit=2").unwrap();
    assert_eq!(page["items"][0]["subject"], "Nº 1");
    let rest = client.get("/v1/sandbox/messages?limit=2&after=msg_2").unwrap();
    assert_eq!((rest["items"].as_array().unwrap().len(), rest["next"].is_null()), (1, true));
    assert_eq!(client.get("/v1/sandbox/messages/msg_3").unwrap()["recipients"][0], "b@example.net");
    assert!(
        client
            .get_bytes("/v1/sandbox/messages/msg_3/content")
            .unwrap()
            .starts_with("Subject: Nº 3".as_bytes())
    );
    assert_eq!(client.delete("/v1/sandbox/messages/msg_3").unwrap()["deleted"], 1);
    assert_eq!(refusal(client.delete("/v1/sandbox/messages/msg_3")).0, 404);
    assert_eq!(client.delete("/v1/sandbox/messages").unwrap()["deleted"], 2);
}

#[test]
fn metrics_are_prometheus_text() {
    let running = running(&Fake::default());
    let text = String::from_utf8(running.client.get_bytes("/v1/metrics").unwrap()).unwrap();
    for line in [
        "postrider_info{version=\"0.1.0\"} 1",
        "postrider_recipients_total{state=\"delivered\"} 3",
        "postrider_messages_accepted_total 9",
        "postrider_lane_waiting{lane=\"mx example.net\"} 5",
        "postrider_spool_syncs_total 7",
        "postrider_spool_takes_messages 1",
        "postrider_more 1",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
    }
    assert!(text.lines().all(|line| line.starts_with("# ") || line.starts_with("postrider_")), "{text}");
}

#[test]
fn a_query_is_percent_encoded() {
    let path = postrider_api::query("/v1/explain", [("target", "ü@a b&c".to_owned()), ("x", "1".to_owned())]);
    assert_eq!(path, "/v1/explain?target=%C3%BC%40a%20b%26c&x=1");
}
