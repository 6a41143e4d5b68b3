//! `/api`: the state of a role as JSON, and changes while the role runs. Requests become commands
//! on a channel. Requests that change something must present the token.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::command::{Command, ServerCommand, ServerError};
use super::{Token, respond};
use crate::config::store::percent_decoded;

/// Maximum number of bytes in a request's body.
const MAX_BODY: usize = 4096;

/// The longest time that a role may take to answer a command.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

const BALANCER_PATH: &str = "/api/balancer";
const SERVERS_PATH: &str = "/api/balancer/servers/";

/// The channel for commands, and the token that permits changes.
#[derive(Debug)]
pub struct Api {
    pub commands: mpsc::Sender<Command>,
    /// Without a token, requests cannot change anything.
    pub token: Option<Token>,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum ApiError {
    #[error("not found")]
    NotFound,
    #[error("method not allowed")]
    Method(&'static str),
    #[error("this API refuses all changes because it has no token; see the log")]
    NoToken,
    #[error("this needs the token: Authorization: Bearer TOKEN")]
    Unauthorized,
    #[error("the body has more than {MAX_BODY} bytes, or did not arrive")]
    Body,
    #[error("the body cannot be parsed: {error}; write for example {example}")]
    Json {
        error: serde_json::Error,
        example: &'static str,
    },
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("the balancer did not answer; it may be shutting down")]
    NoAnswer,
}

impl ApiError {
    const fn status(&self) -> StatusCode {
        match self {
            Self::NotFound | Self::Server(ServerError::Unknown { .. }) => StatusCode::NOT_FOUND,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoToken => StatusCode::FORBIDDEN,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Body => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Json { .. } | Self::Server(ServerError::Invalid(_)) => StatusCode::BAD_REQUEST,
            Self::Server(ServerError::Found { .. } | ServerError::SameNumber(_)) => {
                StatusCode::CONFLICT
            }
            Self::NoAnswer => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The header that the response must have besides its status.
    const fn header(&self) -> Option<(HeaderName, &'static str)> {
        match self {
            Self::Method(allowed) => Some((ALLOW, allowed)),
            Self::Unauthorized => Some((WWW_AUTHENTICATE, "Bearer")),
            _ => None,
        }
    }
}

/// Answers a request below `/api`.
pub(super) async fn answer(api: &Api, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, value, error_header) = match execute(api, request).await {
        Ok(value) => (StatusCode::OK, value, None),
        Err(error) => (
            error.status(),
            json!({ "error": error.to_string() }),
            error.header(),
        ),
    };
    let mut response = respond(status, "application/json", format!("{value:#}\n"));
    if let Some((name, value)) = error_header {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// Why the role is not ready; `None` if it is ready.
pub(super) async fn not_ready_reason(api: &Api) -> Option<String> {
    match send_command(api, Command::Readiness).await {
        Ok(readiness) => readiness.err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// The JSON of `GET /api/balancer`; `None` if the balancer does not answer.
pub(super) async fn balancer_state(api: &Api) -> Option<Value> {
    send_command(api, Command::Balancer).await.ok()
}

async fn execute(api: &Api, request: Request<Incoming>) -> Result<Value, ApiError> {
    let path = request.uri().path();
    if path == BALANCER_PATH {
        if request.method() != Method::GET {
            return Err(ApiError::Method("GET"));
        }
        return send_command(api, Command::Balancer).await;
    }
    let name = path
        .strip_prefix(SERVERS_PATH)
        .and_then(percent_decode)
        .ok_or(ApiError::NotFound)?;
    let method = request.method().clone();
    if ![Method::POST, Method::PUT, Method::DELETE].contains(&method) {
        return Err(ApiError::Method("POST, PUT, DELETE"));
    }
    let authorization = request.headers().get(AUTHORIZATION);
    let token = api.token.as_ref().ok_or(ApiError::NoToken)?;
    if !token.matches(authorization.map(HeaderValue::as_bytes)) {
        return Err(ApiError::Unauthorized);
    }
    let body = Limited::new(request.into_body(), MAX_BODY)
        .collect()
        .await
        .map_err(|_| ApiError::Body)?
        .to_bytes();
    let command = match method {
        Method::DELETE => ServerCommand::Remove,
        Method::PUT => ServerCommand::Put(parse(&body, r#"{"address": "10.0.0.1:443"}"#)?),
        _ => ServerCommand::Change(parse(&body, r#"{"drain": true, "weight": 10}"#)?),
    };
    let answered = send_command(api, |answer| Command::Server {
        name,
        command,
        answer,
    })
    .await?;
    Ok(answered?)
}

/// Parses the JSON of a body. An error shows the example.
fn parse<T: DeserializeOwned>(body: &[u8], example: &'static str) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::Json { error, example })
}

/// Sends a command and waits for the answer.
async fn send_command<T>(
    api: &Api,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, ApiError> {
    let (sender, receiver) = oneshot::channel();
    let exchange = async {
        let sent = api.commands.send(command(sender)).await;
        sent.map_err(|_| ApiError::NoAnswer)?;
        receiver.await.map_err(|_| ApiError::NoAnswer)
    };
    tokio::time::timeout(ANSWER_TIMEOUT, exchange)
        .await
        .unwrap_or(Err(ApiError::NoAnswer))
}

/// Decodes the percent-encoded end of a path (RFC 3986, 2.1). Returns `None` if the end is empty or
/// malformed. The names of servers that DNS gave contain a slash.
fn percent_decode(end: &str) -> Option<String> {
    if end.is_empty() {
        return None;
    }
    percent_decoded(end).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_decodes_names_and_refuses_malformed_ones() {
        assert_eq!(percent_decode("web1").as_deref(), Some("web1"));
        assert_eq!(
            percent_decode("web%201%2F%c3%a4").as_deref(),
            Some("web 1/ä")
        );
        assert_eq!(
            percent_decode("web/10.0.0.1:443").as_deref(),
            Some("web/10.0.0.1:443")
        );
        for wrong in ["", "%", "%2", "%zz", "%+1", "%ff"] {
            assert_eq!(percent_decode(wrong), None, "{wrong}");
        }
    }
}
