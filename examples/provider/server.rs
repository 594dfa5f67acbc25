//! The provider over HTTP.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::response::Response;
use axum::routing::{get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::chat::{Chat, Usage};
use super::desk::{Answer, Desk, Reason, Verdict};
use super::dialect::{Problem, whole_milliseconds, whole_seconds};
use super::settings::Settings;

/// What the handlers share.
#[derive(Debug)]
pub struct Front {
    settings: Settings,
    desk: Mutex<Desk>,
}

/// A request in flight.
struct Slot(Arc<Front>);

impl Front {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            desk: Mutex::new(Desk::new(settings, Instant::now())),
        }
    }

    pub fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something at an instant that is taken under the lock, because instants must not go back.
    pub fn now<T>(&self, act: impl FnOnce(&mut Desk, Instant) -> T) -> T {
        let mut desk = self.desk();
        act(&mut desk, Instant::now())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.desk().release();
    }
}

pub fn router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(complete))
        .route("/control/outage", post(set_outage))
        .route("/control/limits", post(set_limits))
        .route("/control/report", get(report))
        .route("/control/audit", get(audit))
        .route("/control/reset", post(reset))
        .with_state(front)
}

/// A request arrives when its body has been read.
async fn complete(State(front): State<Arc<Front>>, body: Bytes) -> Response {
    let chat = Chat::parse(&body);
    let usage = chat
        .as_ref()
        .ok()
        .map(|chat| chat.usage(front.settings.seed));
    let tokens = usage.map(|usage| usage.total_tokens);
    let answer = front.now(|desk, at| desk.arrive(at, tokens));
    let limits = front
        .settings
        .dialect
        .headers(&answer.standings, SystemTime::now());

    let mut response = match (answer.verdict, chat, usage) {
        (Verdict::Accepted { latency }, Ok(chat), Some(usage)) => {
            work(&front, latency).await;
            respond(
                StatusCode::OK,
                "application/json",
                &completion(&chat, usage),
            )
        }
        (_, chat, _) => front.turn_away(&answer, chat.err()),
    };
    for (name, value) in limits {
        let name = name.parse::<axum::http::HeaderName>().expect("a name");
        let value = value.parse().expect("a value");
        response.headers_mut().insert(name, value);
    }
    response
}

/// Holds a slot for as long as the answer takes. This future is dropped when the client hangs up.
async fn work(front: &Arc<Front>, latency: Duration) {
    let slot = Slot(Arc::clone(front));
    let answering = async move {
        tokio::time::sleep(latency).await;
        drop(slot);
    };
    if front.settings.finish_abandoned {
        // The task can only fail when the provider stops.
        let _ = tokio::spawn(answering).await;
    } else {
        answering.await;
    }
}

fn completion(chat: &Chat, usage: Usage) -> Value {
    json!({
        "id": "chatcmpl-rehearsal",
        "object": "chat.completion",
        "model": chat.model,
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": "This is only a rehearsal."},
            "finish_reason": "stop",
        }],
        "usage": usage,
    })
}

impl Front {
    fn turn_away(&self, answer: &Answer, malformed: Option<String>) -> Response {
        let (problem, status, wait) = match answer.verdict {
            Verdict::Refused {
                reason,
                retry_after,
            } => {
                let status = match reason {
                    Reason::Down => StatusCode::SERVICE_UNAVAILABLE,
                    _ => StatusCode::TOO_MANY_REQUESTS,
                };
                (Problem::Refused(reason), status, retry_after)
            }
            Verdict::Accepted { .. } | Verdict::Malformed => {
                let problem = Problem::Malformed(malformed.unwrap_or_default());
                (problem, StatusCode::BAD_REQUEST, None)
            }
        };
        let (content_type, body) = self.settings.dialect.error(&problem);
        let mut response = respond(status, content_type, &body);
        if let Some(wait) = wait {
            let headers = response.headers_mut();
            headers.insert(RETRY_AFTER, whole_seconds(wait).into());
            if self.settings.retry_after_ms {
                let wait = whole_milliseconds(wait).to_string();
                headers.insert("retry-after-ms", wait.parse().expect("a value"));
            }
        }
        response
    }
}

async fn set_outage(State(front): State<Arc<Front>>, body: Bytes) -> Response {
    control(&body, |outage| {
        front.now(|desk, at| desk.set_outage(at, outage));
    })
}

async fn set_limits(State(front): State<Arc<Front>>, body: Bytes) -> Response {
    control(&body, |limits| {
        front.now(|desk, at| desk.set_limits(at, limits));
    })
}

async fn reset(State(front): State<Arc<Front>>) -> Response {
    front.now(Desk::reset);
    respond(StatusCode::OK, "application/json", &json!({}))
}

async fn report(State(front): State<Arc<Front>>) -> Response {
    let report = front.now(|desk, at| desk.report(at));
    respond(StatusCode::OK, "application/json", &report)
}

async fn audit(State(front): State<Arc<Front>>) -> Response {
    let overruns = front.desk().audit();
    let told: Vec<Value> = overruns
        .iter()
        .map(|over| json!({"position": over.position, "what": over.what, "used": over.used, "quota": over.quota}))
        .collect();
    respond(
        StatusCode::OK,
        "application/json",
        &json!({"overruns": told}),
    )
}

/// Answers with what has been understood.
fn control<T: DeserializeOwned + Serialize + Copy>(body: &[u8], act: impl FnOnce(T)) -> Response {
    match serde_json::from_slice::<T>(body) {
        Ok(told) => {
            act(told);
            respond(StatusCode::OK, "application/json", &told)
        }
        Err(error) => {
            let error = json!({"error": error.to_string()});
            respond(StatusCode::BAD_REQUEST, "application/json", &error)
        }
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("what can be written as JSON");
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .body(Body::from(body))
        .expect("a response")
}
