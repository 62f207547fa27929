//! A client of the socket, for programs that wait for each answer.

use crate::SOCKET_NAME;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use tokio::net::UnixStream;

/// Octets of an answer.
const ANSWER_SIZE_MAX: usize = 1 << 30;
/// How long an answer may take, a little longer than the server allows itself.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no relay runs with the data directory {0}")]
    NotRunning(PathBuf),
    /// We may not open the socket.
    #[error("{0} belongs to another user: run this as the user of the relay, or with sudo")]
    Forbidden(PathBuf),
    /// The relay said no, in a problem detail.
    #[error("{detail}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What was wrong and what to do.
        detail: String,
    },
    /// The connection failed.
    #[error("the relay did not answer: {0}")]
    Io(String),
}

/// A client of one relay.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Of the relay with this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Client { socket: socket.into() }
    }

    /// Of the relay with this data directory.
    #[must_use]
    pub fn of_data_dir(data_dir: &Path) -> Self {
        Client::new(data_dir.join(SOCKET_NAME))
    }

    /// `GET`, the answer as JSON.
    ///
    /// # Errors
    /// When there is no relay, or it refuses.
    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        json(&self.send(Method::GET, path, None)?)
    }

    /// `GET`, the answer as it is.
    ///
    /// # Errors
    /// When there is no relay, or it refuses.
    pub fn get_bytes(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        self.send(Method::GET, path, None)
    }

    /// `POST` of JSON.
    ///
    /// # Errors
    /// When there is no relay, or it refuses.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        json(&self.send(Method::POST, path, Some(body))?)
    }

    /// `PATCH` of JSON.
    ///
    /// # Errors
    /// When there is no relay, or it refuses.
    pub fn patch(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        json(&self.send(Method::PATCH, path, Some(body))?)
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// When there is no relay, or it refuses.
    pub fn delete(&self, path: &str) -> Result<Value, ClientError> {
        json(&self.send(Method::DELETE, path, None)?)
    }

    fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Vec<u8>, ClientError> {
        let io_error = |error: io::Error| ClientError::Io(error.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io_error)?;
        let exchange = self.exchange(method, path, body);
        runtime
            .block_on(async { tokio::time::timeout(TIMEOUT, exchange).await })
            .unwrap_or_else(|_| Err(ClientError::Io(format!("not within {} s", TIMEOUT.as_secs()))))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Vec<u8>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let failed = |error: &dyn std::fmt::Display| ClientError::Io(error.to_string());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
        tokio::spawn(connection);
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| failed(&e))?;
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_SIZE_MAX).collect().await;
        let body = body.map_err(|e| failed(&e))?.to_bytes();
        if status.is_success() { Ok(body.to_vec()) } else { Err(refused(status, &body)) }
    }

    fn unreachable(&self, error: &io::Error) -> ClientError {
        let data_dir = self.socket.parent().unwrap_or(&self.socket).to_owned();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
                ClientError::NotRunning(data_dir)
            }
            io::ErrorKind::PermissionDenied => ClientError::Forbidden(self.socket.clone()),
            _ => ClientError::Io(error.to_string()),
        }
    }
}

fn json(body: &[u8]) -> Result<Value, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Io(format!("not JSON: {error}")))
}

fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    let detail = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|problem| described(&problem))
        .unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    ClientError::Refused { status: status.as_u16(), detail }
}

/// What a problem says: its detail, or every field that it names.
fn described(problem: &Value) -> Option<String> {
    let errors = problem["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let lines: Vec<_> = errors
        .iter()
        .filter_map(|error| Some(format!("{}: {}", error["field"].as_str()?, error["detail"].as_str()?)))
        .collect();
    if lines.is_empty() { problem["detail"].as_str().map(str::to_owned) } else { Some(lines.join("\n")) }
}

/// A text as a part of a path or query, percent-encoded.
#[must_use]
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// A path with a query of these pairs, percent-encoded.
#[must_use]
pub fn query<'a>(path: &str, pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut out = path.to_owned();
    for (index, (name, value)) in pairs.into_iter().enumerate() {
        out.push(if index == 0 { '?' } else { '&' });
        out.push_str(name);
        out.push('=');
        out.push_str(&encoded(&value));
    }
    out
}
