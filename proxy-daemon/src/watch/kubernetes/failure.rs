//! Why did a request have no successful answer, or an answer no good end?

use std::time::Duration;

use http::{Response, StatusCode, header};
use http_body_util::BodyExt;
use kube::client::Body;

use crate::model::from_k8s::wire::Object;

/// How much of a refusal is read.
///
/// Unit: bytes.
const MAX_REFUSAL: usize = 64 * 1024;

/// Why a request had no successful answer, or an answer no good end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The server answered with an error.
    #[error("the API server answers {status}: {message}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// How long it asks us to wait.
        retry_after: Option<Duration>,
        /// What it says, quoted and cut.
        message: String,
    },
    /// The server no longer has the version that we continue from.
    #[error("the API server no longer has the resourceVersion to continue the watch from")]
    Gone,
    /// The server is at an older version than the one that we have from it.
    #[error(
        "the API server is at version {found}, after it was at {known}: \
         it was probably restored from a backup"
    )]
    Rewound {
        /// What we had.
        known: String,
        /// What it says now.
        found: String,
    },
    /// The connection could not be made or broke.
    #[error("the connection to the API server failed")]
    Connection(#[source] Box<kube::Error>),
    /// Nothing came for too long.
    #[error("the API server sent nothing for {0:?}")]
    Silence(Duration),
    /// A bookmark came in a streaming list before its end, as only in a plain watch.
    #[error("the API server does not support streaming lists")]
    PlainWatch,
    /// The answer ended before it was complete.
    #[error("the API server's answer is incomplete")]
    Cut,
    /// The answer is not what an API server sends.
    #[error("cannot read the API server's answer: {0}")]
    Garbled(String),
}

impl Failure {
    /// The failure in a server's error answer.
    pub(super) async fn of(response: Response<Body>, patience: Duration) -> Self {
        let status = response.status();
        if status == StatusCode::GONE {
            return Self::Gone;
        }
        // Compat: seconds only; the API server writes no dates.
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let body = http_body_util::Limited::new(response.into_body(), MAX_REFUSAL).collect();
        let message = match tokio::time::timeout(patience, body).await {
            Ok(Ok(body)) => message(&body.to_bytes()),
            Ok(Err(_)) | Err(_) => String::new(),
        };
        Self::Refused {
            status,
            retry_after,
            message,
        }
    }

    /// The failure in an event of type `ERROR`.
    pub(super) fn of_event(status: &Object<'_>) -> Self {
        let code = status.code.value().copied().unwrap_or(500);
        if code == 410 {
            return Self::Gone;
        }
        let code = u16::try_from(code)
            .ok()
            .and_then(|code| StatusCode::from_u16(code).ok());
        Self::Refused {
            status: code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            retry_after: None,
            message: cut(status.message.text()),
        }
    }
}

/// The message of a `Status`, or the beginning of whatever it is.
fn message(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let status = serde_json::from_str::<Object<'_>>(&text).unwrap_or_default();
    let said = status.message.value().map_or(&*text, |message| message);
    cut(said.lines().next().unwrap_or_default())
}

fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_quoted_in_one_line() {
        assert_eq!(
            message(br#"{"kind":"Status","message":"no\u0007 way\nat all"}"#),
            "no way"
        );
        assert_eq!(message(b"<html>\nbad gateway"), "<html>");
        assert_eq!(message(&b"x".repeat(10_000)).len(), 300);
    }
}
