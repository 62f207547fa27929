//! The public listener: connections, TLS, time-outs, and whence a request came.

use crate::caller::{Keys, Peer};
use crate::port::Relay;
use crate::problem::Problem;
use crate::public;
use crate::server::Server;
use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use postrider_model::snapshot::Cidr;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

/// Connections at once.
const CONNECTIONS_MAX: usize = 10_000;
/// How long a client may take over the head of a request, and how long a connection may idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may take over a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Octets of all bodies that are being read or served, in KiB.
const BODIES_SIZE_MAX_KIB: u32 = 256 << 10;
/// How long a request waits for room for its body.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
/// How long open requests may go on after a stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How the public listener behaves.
#[derive(Clone, Debug, Default)]
pub struct HttpOptions {
    /// TLS from the first octet; `None` is in clear.
    pub tls: Option<Arc<tokio_rustls::rustls::ServerConfig>>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Cidr>,
}

struct Shared {
    router: Router,
    trusted_proxies: Vec<Cidr>,
    bodies: Arc<Semaphore>,
}

/// Serves the routes of applications on `listener`, on a thread of its own.
///
/// # Errors
/// When the system gives no thread or event loop.
pub fn start_http<R: Relay + Keys>(
    listener: TcpListener,
    options: HttpOptions,
    relay: R,
) -> io::Result<Server> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
        if let Err(error) = runtime.block_on(serve(listener, options, relay, stopped)) {
            tracing::error!(%error, "the HTTP listener failed");
        }
        runtime.shutdown_timeout(Duration::ZERO);
    })?;
    Ok(Server::new(stop, thread))
}

async fn serve<R: Relay + Keys>(
    listener: TcpListener,
    options: HttpOptions,
    relay: R,
    mut stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let shared = Arc::new(Shared {
        router: public::router(relay),
        trusted_proxies: options.trusted_proxies,
        bodies: Arc::new(Semaphore::new(BODIES_SIZE_MAX_KIB as usize)),
    });
    let acceptor = options.tls.map(TlsAcceptor::from);
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    loop {
        // Beyond the bound, clients wait in the kernel.
        let accepted = async {
            // Invariant: this semaphore is never closed.
            let permit = connections.clone().acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, peer)| (stream, peer, permit))
        };
        tokio::select! {
            _ = &mut stopped => break,
            accepted = accepted => match accepted {
                Ok((stream, peer, permit)) => {
                    let watcher = graceful.watcher();
                    tokio::spawn(connection(stream, peer, acceptor.clone(), shared.clone(), watcher, permit));
                }
                Err(error) => {
                    tracing::warn!(%error, "a client could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(STOP_TIMEOUT, graceful.shutdown()).await;
    Ok(())
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    watcher: hyper_util::server::graceful::Watcher,
    _permit: OwnedSemaphorePermit,
) {
    // Answers are small and written whole.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| answer(shared.clone(), peer.ip(), request));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(64);
    let ended = match acceptor {
        None => watcher.watch(builder.serve_connection(TokioIo::new(stream), service)).await,
        Some(acceptor) => match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => watcher.watch(builder.serve_connection(TokioIo::new(stream), service)).await,
            Ok(Err(error)) => {
                tracing::info!(%peer, %error, "a client's TLS handshake failed");
                return;
            }
            Err(_) => return,
        },
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended");
    }
}

/// Reads the body within its bounds, and lets the routes answer.
async fn answer(
    shared: Arc<Shared>,
    peer: IpAddr,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(Peer { address: shared.client(peer, &parts.headers) });
    let (body, _room) = match read(&shared.bodies, &parts.headers, body).await {
        Ok(read) => read,
        Err(problem) => {
            let mut response = problem.into_response();
            // What is left of the body would be taken for the next request.
            response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            return Ok(response);
        }
    };
    shared.router.clone().call(Request::from_parts(parts, body)).await
}

/// A body in memory, and the room it takes there while the request goes on.
async fn read(
    bodies: &Arc<Semaphore>,
    headers: &hyper::HeaderMap,
    body: Incoming,
) -> Result<(Body, Option<OwnedSemaphorePermit>), Problem> {
    use hyper::body::Body as _;
    if body.is_end_stream() {
        return Ok((Body::empty(), None));
    }
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let size: usize = declared.unwrap_or(public::BODY_SIZE_MAX);
    if size > public::BODY_SIZE_MAX {
        return Err(Problem::too_large(public::BODY_SIZE_MAX));
    }
    let room = u32::try_from(size / 1024 + 1).unwrap_or(u32::MAX);
    let room = tokio::time::timeout(ROOM_TIMEOUT, bodies.clone().acquire_many_owned(room)).await;
    let Ok(Ok(room)) = room else {
        return Err(Problem::busy("too many large requests are being served; try again later"));
    };
    let limited = http_body_util::Limited::new(body, public::BODY_SIZE_MAX);
    match tokio::time::timeout(BODY_TIMEOUT, limited.collect()).await {
        Ok(Ok(collected)) => Ok((Body::from(collected.to_bytes()), Some(room))),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Problem::too_large(public::BODY_SIZE_MAX))
        }
        Ok(Err(error)) => Err(Problem::bad_request(format!("the body could not be read: {error}"))),
        Err(_) => Err(Problem::bad_request(format!(
            "the body did not come within {} seconds",
            BODY_TIMEOUT.as_secs()
        ))),
    }
}

impl Shared {
    /// The client: the last address of `X-Forwarded-For` that is no trusted proxy, if a trusted proxy says so.
    fn client(&self, peer: IpAddr, headers: &hyper::HeaderMap) -> IpAddr {
        let trusted = |address: IpAddr| self.trusted_proxies.iter().any(|net| net.contains(address));
        let mut client = peer;
        if !trusted(peer) {
            return client;
        }
        let forwarded: Vec<&str> = headers
            .get_all("x-forwarded-for")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .collect();
        for address in forwarded.iter().rev() {
            let Ok(address) = address.trim().parse::<IpAddr>() else { return client };
            client = address;
            if !trusted(address) {
                break;
            }
        }
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_last_address_that_no_trusted_proxy_has() {
        let shared = Shared {
            router: Router::new(),
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
            bodies: Arc::new(Semaphore::new(1)),
        };
        let check = |peer: &str, forwarded: &[&str], client: &str| {
            let mut headers = hyper::HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", value.parse().unwrap());
            }
            let found = shared.client(peer.parse().unwrap(), &headers);
            assert_eq!(found, client.parse::<IpAddr>().unwrap(), "{peer} {forwarded:?}");
        };
        check("10.0.0.1", &["192.0.2.7"], "192.0.2.7");
        check("10.0.0.1", &["203.0.113.9, 192.0.2.7, 10.0.0.2"], "192.0.2.7");
        check("10.0.0.1", &["203.0.113.9", "192.0.2.7"], "192.0.2.7");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["192.0.2.7, nonsense"], "10.0.0.1");
        // Whoever is no proxy of ours says nothing about itself.
        check("198.51.100.1", &["192.0.2.7"], "198.51.100.1");
    }
}
