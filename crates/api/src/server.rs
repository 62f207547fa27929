//! The socket and the thread behind it.

use crate::actor::Actor;
use crate::port::{Health, Relay, SpoolView};
use crate::problem::Problem;
use crate::{SOCKET_NAME, control, metrics, queue, sandbox};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Extension, Router};
use postrider_engine::operate::{Request, Response};
use serde_json::{Value, json};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::oneshot;

/// Octets of a request's body.
const BODY_SIZE_MAX: usize = 1 << 20;
/// How long open requests may go on after [`Server::stop`].
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the socket cannot be had.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another process answers on it.
    #[error("another postrider runs with the data directory {0}; stop it, or choose another with --data-dir")]
    Running(PathBuf),
    /// The system refused.
    #[error("cannot listen on {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes `admin.sock` in the data directory, for its owner only; one left behind by a crash is replaced.
///
/// # Errors
/// When another relay uses the directory, or the system refuses.
pub fn bind(data_dir: &Path) -> Result<UnixListener, BindError> {
    let path = data_dir.join(SOCKET_NAME);
    if UnixStream::connect(&path).is_ok() {
        return Err(BindError::Running(data_dir.to_owned()));
    }
    // Made under another name, so that nobody can connect before the permissions are right.
    let nascent = data_dir.join(format!(".{SOCKET_NAME}.{}", std::process::id()));
    let made = || {
        match std::fs::remove_file(&nascent) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&nascent)?;
        std::fs::set_permissions(&nascent, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&nascent, &path)?;
        Ok(listener)
    };
    made().map_err(|source| BindError::Io { path, source })
}

/// The thread that answers.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Answers on `listener` with what `relay` says, on a thread of its own.
///
/// # Errors
/// When the system gives no thread or event loop.
pub fn start<R: Relay>(listener: UnixListener, relay: R) -> io::Result<Server> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("api".to_owned()).spawn(move || {
        let served = runtime.block_on(serve(listener, relay, stopped));
        if let Err(error) = served {
            tracing::error!(%error, "the admin socket failed");
        }
        runtime.shutdown_timeout(Duration::ZERO);
    })?;
    Ok(Server::new(stop, thread))
}

impl Server {
    pub(crate) fn new(stop: oneshot::Sender<()>, thread: JoinHandle<()>) -> Self {
        Server { stop: Some(stop), thread: Some(thread) }
    }

    /// Takes no new requests, waits a little for the open ones, and ends.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

async fn serve<R: Relay>(listener: UnixListener, relay: R, stopped: oneshot::Receiver<()>) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let (draining, drained) = oneshot::channel::<()>();
    let stopped = async move {
        let _ = stopped.await;
        drop(draining);
    };
    let bound = async move {
        let _ = drained.await;
        tokio::time::sleep(STOP_TIMEOUT).await;
    };
    let serving = axum::serve(listener, router(relay)).with_graceful_shutdown(stopped);
    tokio::select! {
        served = async { serving.await } => served,
        () = bound => Ok(()),
    }
}

fn router<R: Relay>(relay: R) -> Router {
    Router::new()
        .route("/v1/queue", get(queue::list::<R>).post(queue::act::<R>))
        .route("/v1/queue/{id}", get(queue::show::<R>))
        .route("/v1/acts/{number}", get(queue::progress::<R>))
        .route("/v1/explain", get(queue::explain::<R>))
        .route("/v1/lanes", get(queue::lanes::<R>))
        .route("/v1/totals", get(queue::totals::<R>))
        .route("/v1/suspensions", get(queue::suspensions::<R>))
        .route("/v1/sandbox/messages", get(sandbox::list::<R>).delete(sandbox::clear::<R>))
        .route("/v1/sandbox/messages/{id}", get(sandbox::show::<R>).delete(sandbox::delete::<R>))
        .route("/v1/sandbox/messages/{id}/content", get(sandbox::content::<R>))
        .route("/v1/spool", get(spool::<R>))
        .route("/v1/metrics", get(metrics_text::<R>))
        .route("/v1/health", get(health::<R>))
        .route("/v1/reload", post(reload::<R>))
        .fallback(|| async { Problem::not_found("no such route; the routes are listed in docs/api.md") })
        .method_not_allowed_fallback(|| async {
            Problem::bad_request("this route knows other methods; the routes are listed in docs/api.md")
        })
        .with_state(relay.clone())
        .merge(control::router(relay).layer(Extension(Actor::operator())))
        .layer(DefaultBodyLimit::max(BODY_SIZE_MAX))
}

async fn health<R: Relay>(State(relay): State<R>) -> axum::Json<Health> {
    axum::Json(relay.health())
}

async fn spool<R: Relay>(State(relay): State<R>) -> Result<axum::Json<SpoolView>, Problem> {
    relay.spool().map(axum::Json).ok_or_else(Problem::timeout)
}

async fn metrics_text<R: Relay>(State(relay): State<R>) -> Result<impl IntoResponse, Problem> {
    let Response::Totals(totals) = queue::ask(&relay, Request::Totals).await? else {
        return Err(Problem::timeout());
    };
    let Response::Lanes(lanes) = queue::ask(&relay, Request::Lanes).await? else {
        return Err(Problem::timeout());
    };
    let health = relay.health();
    let more = metrics::spool(&relay.spool().unwrap_or_default()) + &relay.metrics();
    let text = metrics::text(&totals, &lanes, &health.version, health.uptime_s, &more);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}

async fn reload<R: Relay>(State(relay): State<R>) -> Result<axum::Json<Value>, Problem> {
    match relay.reload().await {
        Ok(notes) => Ok(axum::Json(json!({ "reloaded": true, "notes": notes }))),
        Err(problems) => Err(Problem::refused(problems)),
    }
}
