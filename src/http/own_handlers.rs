//! Questions about the process itself: always its own, never passed on.

use std::sync::Arc;

use serde_json::json;
use tiny_http::Method;

use super::answer::Answer;
use super::lanes::Job;
use super::routes::Route;
use super::server::Server;
use crate::error::Error;

/// Answers `/livez`, `/readyz` and `/metrics`.
pub fn answer(server: &Arc<Server>, job: &Job, route: Route) -> Answer {
    let method = job.arrival.request.method();
    if *method != Method::Get {
        return Answer::error(&Error::MethodNotAllowed(route.allow()), method, "");
    }
    match route {
        Route::Livez => Answer::json(200, &b"{\"alive\":true}"[..]),
        Route::Readyz => {
            let reasons = server.controller.node.unready();
            let status = if reasons.is_empty() { 200 } else { 503 };
            let notes = server.controller.node.notes();
            let body = json!({ "ready": reasons.is_empty(), "reasons": reasons, "notes": notes });
            Answer::json(status, body.to_string().into_bytes())
        }
        _ => {
            let text = server.metrics.render(&server.sample());
            Answer { content_type: prometheus::TEXT_FORMAT.into(), ..Answer::json(200, text) }
        }
    }
}
