//! `/api`: what a role says of itself as JSON, and the few things that can be changed while it runs.
//! Requests become commands on a channel; a request that changes something has to show the token.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::Token;
use super::command::{Command, ServerChange};

/// Most bytes of a request's body.
const MAX_BODY: usize = 4096;

/// How long a role may take to answer a command.
const PATIENCE: Duration = Duration::from_secs(5);

const BALANCER: &str = "/api/balancer";
const SERVERS: &str = "/api/balancer/servers/";

/// Where commands go, and who may give them.
#[derive(Debug)]
pub struct Api {
    pub commands: mpsc::Sender<Command>,
    /// `None`: nobody may change anything.
    pub token: Option<Token>,
}

/// Why a request is not obeyed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("not found")]
    NotFound,
    #[error("method not allowed")]
    Method(&'static str),
    #[error("no request can change anything here: there is no token; the log says why")]
    NoToken,
    #[error("this needs the token: Authorization: Bearer TOKEN")]
    Unauthorized,
    #[error("the body has more than {MAX_BODY} bytes, or did not come")]
    Body,
    #[error("the body is not understood: {0}; for instance {{\"drain\": true, \"weight\": 10}}")]
    Json(serde_json::Error),
    #[error(transparent)]
    UnknownServer(#[from] super::UnknownServer),
    #[error("no answer; it may be shutting down")]
    NoAnswer,
}

impl Refusal {
    const fn status(&self) -> StatusCode {
        match self {
            Self::NotFound | Self::UnknownServer(_) => StatusCode::NOT_FOUND,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoToken => StatusCode::FORBIDDEN,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Body => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Json(_) => StatusCode::BAD_REQUEST,
            Self::NoAnswer => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Answers a request below `/api`.
pub(super) async fn answer(api: &Api, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, value, headers) = match obey(api, request).await {
        Ok(value) => (StatusCode::OK, value, None),
        Err(refusal) => {
            let header = match refusal {
                Refusal::Method(allowed) => Some((ALLOW, allowed)),
                Refusal::Unauthorized => Some((WWW_AUTHENTICATE, "Bearer")),
                _ => None,
            };
            let value = json!({ "error": refusal.to_string() });
            (refusal.status(), value, header)
        }
    };
    let mut response = Response::new(Full::new(format!("{value:#}\n").into()));
    *response.status_mut() = status;
    let headers = headers
        .into_iter()
        .chain([(CONTENT_TYPE, "application/json")]);
    for (name, value) in headers {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// Why the role cannot do its work, if it cannot.
pub(super) async fn unready(api: &Api) -> Option<String> {
    match ask(api, Command::Readiness).await {
        Ok(ready) => ready.err().map(|error| error.to_string()),
        Err(refusal) => Some(refusal.to_string()),
    }
}

async fn obey(api: &Api, request: Request<Incoming>) -> Result<Value, Refusal> {
    let path = request.uri().path().to_owned();
    if path == BALANCER {
        if request.method() != Method::GET {
            return Err(Refusal::Method("GET"));
        }
        return ask(api, Command::Balancer).await;
    }
    let name = path.strip_prefix(SERVERS).and_then(decoded);
    let name = name.ok_or(Refusal::NotFound)?;
    if request.method() != Method::POST {
        return Err(Refusal::Method("POST"));
    }
    let shown = request.headers().get(AUTHORIZATION);
    let token = api.token.as_ref().ok_or(Refusal::NoToken)?;
    if !token.admits(shown.map(HeaderValue::as_bytes)) {
        return Err(Refusal::Unauthorized);
    }
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|_| Refusal::Body)?.to_bytes();
    let change: ServerChange = serde_json::from_slice(&body).map_err(Refusal::Json)?;
    let changed = ask(api, |answer| Command::ChangeServer {
        name,
        change,
        answer,
    });
    Ok(changed.await??)
}

/// Sends a command and waits for its answer.
async fn ask<T>(
    api: &Api,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, Refusal> {
    let (answer, answered) = oneshot::channel();
    let asked = async {
        api.commands.send(command(answer)).await.ok()?;
        answered.await.ok()
    };
    let answered = tokio::time::timeout(PATIENCE, asked).await;
    answered.ok().flatten().ok_or(Refusal::NoAnswer)
}

/// A part of a path without its percent signs (RFC 3986, 2.1); `None` where it is not one.
fn decoded(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?].map(|it| char::from(it).to_digit(16));
                let [Some(high), Some(low)] = digits else {
                    return None;
                };
                u8::try_from(high << 4 | low).ok()?
            }
            b'/' => return None,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().filter(|it| !it.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_path_is_read_as_it_was_meant() {
        let read = |part| decoded(part);
        assert_eq!(read("web1").as_deref(), Some("web1"));
        assert_eq!(read("web%201%2F%c3%a4").as_deref(), Some("web 1/ä"));
        for wrong in ["", "a/b", "%", "%2", "%zz", "%+1", "%ff"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
