//! Questions about the process itself: always its own, never passed on.

use serde_json::json;
use tiny_http::Method;

use super::answer::Answer;
use super::dispatch::Job;
use super::openapi;
use super::page;
use super::routes::Route;
use crate::error::Error;
use crate::node::state::Node;

/// Answers `/livez`, `/readyz` and `/metrics`, which is the text of the figures.
pub fn answer(node: &Node, job: &Job, route: Route, figures: impl FnOnce() -> Vec<u8>) -> Answer {
    let method = job.arrival.method();
    if *method != Method::Get {
        return Answer::error(&Error::MethodNotAllowed(route.allow()), method, "");
    }
    match route {
        Route::Livez => Answer::json(200, &b"{\"alive\":true}"[..]),
        Route::Readyz => {
            let reasons = node.unready();
            let status = if reasons.is_empty() { 200 } else { 503 };
            let notes = node.notes();
            let body = json!({ "ready": reasons.is_empty(), "reasons": reasons, "notes": notes });
            let answer = Answer::json(status, body.to_string().into_bytes());
            if status == 503 { answer.with("Retry-After", "1") } else { answer }
        }
        _ => Answer { content_type: prometheus::TEXT_FORMAT.into(), ..Answer::json(200, figures()) },
    }
}

/// Answers `/openapi.json`: what all paths take and answer.
pub fn document(job: &Job) -> Answer {
    let method = job.arrival.method();
    if *method != Method::Get {
        return Answer::error(&Error::MethodNotAllowed(Route::OpenApi.allow()), method, "");
    }
    openapi::answer(job.arrival.request.headers())
}

/// Answers `/` and what is under `/page/`: the page for people.
pub fn page(job: &Job, route: Route, name: &str) -> Answer {
    page::answer(job.arrival.method(), job.arrival.request.headers(), route, name)
}
