//! Logging in: a session where the service has sessions, basic authentication where it has none.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::refusals::Fingerprint;
use crate::resources::{error_message, local_path};
use crate::transport::{Answer, Authorization};
use crate::{Credentials, ErrorKind};

/// How we are known to the BMC at the moment.
#[derive(Clone)]
pub(crate) enum Session {
    /// A token, and where to delete the session.
    Token { token: HeaderValue, location: Option<String> },
    /// The service has no sessions: user name and password go with each request.
    Basic { value: HeaderValue, of: Fingerprint },
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token { .. } => "Session::Token(…)",
            Self::Basic { .. } => "Session::Basic(…)",
        })
    }
}

impl Session {
    pub(crate) fn basic(credentials: &Credentials) -> Option<Self> {
        let pair = Zeroizing::new(format!("{}:{}", credentials.user, credentials.password.as_str()));
        let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some(Self::Basic { value, of: Fingerprint::of(credentials) })
    }

    pub(crate) fn authorization(&self) -> Authorization {
        match self {
            Self::Token { token, .. } => Authorization::Token(token.clone()),
            Self::Basic { value, .. } => Authorization::Basic(value.clone()),
        }
    }

    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Token { token: a, .. }, Self::Token { token: b, .. }) => a == b,
            (Self::Basic { value: a, .. }, Self::Basic { value: b, .. }) => a == b,
            (Self::Token { .. }, Self::Basic { .. }) | (Self::Basic { .. }, Self::Token { .. }) => false,
        }
    }
}

#[derive(Serialize)]
struct Login<'a> {
    #[serde(rename = "UserName")]
    user: &'a str,
    #[serde(rename = "Password")]
    password: &'a str,
}

/// Body of the login request; its memory is overwritten when the request is done with it.
pub(crate) fn login_body(credentials: &Credentials) -> Bytes {
    let login = Login { user: &credentials.user, password: &credentials.password };
    // Room for every character escaped, so that the buffer doesn't move and leave a copy behind.
    let mut body =
        Zeroizing::new(Vec::with_capacity(64 + 6 * (credentials.user.len() + credentials.password.len())));
    if serde_json::to_writer(&mut *body, &login).is_err() {
        // Two strings can't fail to be written into memory; an empty body would be refused by the BMC, which is said.
        body.clear();
    }
    Bytes::from_owner(body)
}

/// What an answer to a login means.
pub(crate) enum LoginAnswer {
    Session(Session),
    /// The service has no sessions after all.
    NoSessions,
    Failed(ErrorKind),
}

pub(crate) fn judge_login(answer: &Answer, password: &str) -> LoginAnswer {
    let status = answer.status;
    // Some services quote the request in their error.
    let message = error_message(&answer.body).replace(password, "…");
    if status.is_success() {
        let Some(token) = answer.headers.get("X-Auth-Token") else {
            let message = "it sent no X-Auth-Token".to_owned();
            return LoginAnswer::Failed(ErrorKind::SessionUnavailable { status, message });
        };
        let mut token = token.clone();
        token.set_sensitive(true);
        let location = answer.headers.get(http::header::LOCATION).and_then(|value| value.to_str().ok());
        return LoginAnswer::Session(Session::Token { token, location: location.and_then(local_path) });
    }
    let full =
        ["limit", "maximum", "too many"].iter().any(|word| message.to_ascii_lowercase().contains(word));
    match status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            LoginAnswer::NoSessions
        }
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !full => {
            LoginAnswer::Failed(ErrorKind::LoginRefused { status, message })
        }
        _ => LoginAnswer::Failed(ErrorKind::SessionUnavailable { status, message }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;

    fn credentials() -> Credentials {
        Credentials { user: "ro\"ot".into(), password: Zeroizing::new("ge\\heim".into()) }
    }

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        Answer { status: StatusCode::from_u16(status).unwrap(), headers: map, body: body.to_owned().into() }
    }

    #[test]
    fn the_login_is_json_and_secrets_are_not_printed() {
        let value: serde_json::Value = serde_json::from_slice(&login_body(&credentials())).unwrap();
        assert_eq!(value, serde_json::json!({"UserName": "ro\"ot", "Password": "ge\\heim"}));
        let basic = Session::basic(&credentials()).unwrap();
        let Session::Basic { value: header, .. } = &basic else { panic!("basic") };
        assert!(header.is_sensitive());
        assert_eq!(format!("{basic:?} {header:?}"), "Session::Basic(…) Sensitive");
    }

    #[test]
    fn answers_to_a_login_are_told_apart() {
        let good =
            answer(201, &[("x-auth-token", "t"), ("location", "https://x.example/redfish/v1/S/7")], "{}");
        assert!(
            matches!(judge_login(&good, "p"), LoginAnswer::Session(Session::Token { location: Some(l), .. }) if l == "/redfish/v1/S/7")
        );
        assert!(matches!(judge_login(&answer(404, &[], ""), "p"), LoginAnswer::NoSessions));
        let wrong =
            judge_login(&answer(401, &[], r#"{"error":{"message":"bad password geheim"}}"#), "geheim");
        let LoginAnswer::Failed(kind) = wrong else { panic!("failed") };
        assert!(matches!(kind, ErrorKind::LoginRefused { .. }) && !kind.to_string().contains("geheim"));
        for full in [
            answer(503, &[], ""),
            answer(400, &[], r#"{"error":{"message":"Session limit exceeded"}}"#),
            answer(200, &[], "{}"),
        ] {
            assert!(matches!(
                judge_login(&full, "p"),
                LoginAnswer::Failed(ErrorKind::SessionUnavailable { .. })
            ));
        }
    }
}
