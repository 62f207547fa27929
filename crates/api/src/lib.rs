//! The HTTP API of a running relay: for applications on a TCP listener, each request under an API key; for
//! operators on a Unix socket whose file permissions are its lock.
//!
//! **For:** applications that send mail and ask what became of it; operators and programs on the same machine:
//! the queue, why something waits, the sandbox, metrics and health, as JSON under `/v1`; and [`Client`], with
//! which the command line asks.
//! **Promises:** a message is answered with its id only after it is durable (P1); every refusal is an RFC 9457
//! problem that says what to do and names each field that is wrong; an application sees its own mail only;
//! lists come in pages; an order without a filter acts on nobody; a relay that is busy makes a request fail in
//! time, not hang; what a client can make us keep in memory is bounded.
//! **Never:** a decision about mail. What is asked goes through [`Relay`] to the shards as it is, and who may
//! send as whom is decided where the message is taken.
//!
//! Routes for applications ([`start_http`]):
//!
//! | route | |
//! |---|---|
//! | `POST /v1/emails` | sends one message |
//! | `POST /v1/emails/batch` | sends up to 1,000, each answered by itself |
//! | `POST /v1/emails/raw` | sends a message that is MIME already |
//! | `GET /v1/emails/{id}` | what is known of it |
//! | `PATCH /v1/emails/{id}` | another `scheduled_at` |
//! | `POST /v1/emails/{id}/cancel`, `…/retry` | acts on what of it waits |
//! | `GET /v1/sandbox/messages` | what was captured of this application; `…/{id}`, `…/{id}/content` |
//! | `/compat/resend`, `/compat/postmark`, `/compat/sendgrid` | the same, as other vendors' clients ask |
//! | `/v1/applications`, `/v1/keys`, `/v1/instance`, `/v1/audit` | as on the socket, as far as the key's scopes go |
//! | `GET /v1/openapi.json`, `/healthz`, `/readyz` | without a key |
//!
//! Routes of the socket ([`start`]):
//!
//! | route | |
//! |---|---|
//! | `GET /v1/queue` | recipients that wait; a [`Filter`](postrider_engine::operate::Filter) as query, `limit`, `after` |
//! | `POST /v1/queue` | an act: `{"act": "retry", "filter": {"domain": "example.com"}}` |
//! | `GET /v1/queue/{id}` | one message or recipient |
//! | `GET /v1/acts/{number}` | how far an act is |
//! | `GET /v1/explain?target=` | why a recipient, an address or a domain waits |
//! | `GET /v1/lanes`, `/v1/totals`, `/v1/suspensions` | what moves, what was counted, what is stopped |
//! | `GET, DELETE /v1/sandbox/messages` | captured mail; `…/{id}` one of it, `…/{id}/content` as it came |
//! | `GET, POST /v1/applications` | list, create; `GET, PATCH, DELETE …/{id}`, `POST …/{id}/revoke` |
//! | `GET, POST /v1/applications/{id}/credentials` | list, create; `DELETE …/{credential}` revokes |
//! | `GET, POST /v1/keys` | list, create; `GET, DELETE …/{id}` |
//! | `GET, PATCH /v1/instance` | whether mail of applications may leave |
//! | `GET /v1/audit`, `/v1/audit/verify` | every change, and whether the log is whole |
//! | `GET /v1/spool` | figures of the log |
//! | `GET /v1/metrics` | Prometheus text |
//! | `GET /v1/health` | what runs, since when, where it listens |
//! | `POST /v1/reload` | reads the configuration again |
//!
//! ```no_run
//! # use postrider_api::{Client, ClientError};
//! let client = Client::new("/var/lib/postrider/admin.sock");
//! let totals = client.get("/v1/totals")?;
//! println!("{} recipients wait", totals["recipients"]);
//! # Ok::<(), ClientError>(())
//! ```

mod actor;
mod caller;
mod client;
mod compat;
mod control;
mod emails;
mod http;
mod metrics;
mod openapi;
mod port;
mod problem;
mod public;
mod queue;
mod sandbox;
mod server;
mod submitter;

pub use caller::{Caller, Keys};
pub use client::{Client, ClientError, encoded, query};
pub use http::{HttpOptions, start_http};
pub use port::{Captured, Health, ListenerView, Relay, SpoolView, Unavailable, Wanted};
pub use queue::Order;
pub use server::{BindError, Server, bind, start};

/// The socket's name in the data directory.
pub const SOCKET_NAME: &str = "admin.sock";
