//! Questions about the cluster.

use std::sync::Arc;

use serde_json::{Value, json};
use tiny_http::Method;

use super::answer::Answer;
use super::body::{self, Limit};
use super::lanes::Job;
use super::payload::Payload;
use super::routes::Route;
use super::server::Server;
use crate::error::Error;
use crate::node::state::{Node, Serving};

/// Bodies of such requests are small; a larger one is refused.
const BODY: Limit = Limit { bytes: 1 << 20, allowed: 1 << 20 };

/// Answers a question about the cluster.
pub fn answer(server: &Arc<Server>, job: &mut Job, route: &Route) -> Answer {
    let method = job.arrival.request.method().clone();
    let body = body::read(&mut job.arrival.request, &job.arrival.framing, BODY, &server.budget);
    job.body_was_read = body.is_ok();
    let payload = body.as_ref().map_err(Clone::clone).and_then(|body| Payload::parse(&body.bytes));
    let causal = payload.as_ref().ok().and_then(|payload| payload.causal_context().ok().flatten());
    let more = causal.map(|causal| format!(",\"causal-context\":{causal}")).unwrap_or_default();
    let result = match (&body, route, &method) {
        (Err(error), _, _) => Err(error.clone()),
        (_, Route::ViewChange, Method::Get | Method::Put | Method::Delete) => {
            Err(not_implemented("View changes"))
        }
        (_, Route::Audit, Method::Get) => Err(not_implemented("The audit")),
        (_, _, Method::Get) => question(&server.node, route),
        _ => Err(Error::MethodNotAllowed(route.allow())),
    };
    match result {
        Err(error) => Answer::error(&error, &method, &more),
        Ok(mut body) => {
            if let Some(context) = causal.and_then(|causal| serde_json::from_str(causal).ok()) {
                body["causal-context"] = context;
            }
            let answer = Answer::json(200, body.to_string().into_bytes());
            match body["epoch"].as_u64() {
                Some(epoch) => answer.with("ETag", format!("\"{epoch}\"")),
                None => answer,
            }
        }
    }
}

fn not_implemented(what: &str) -> Error {
    Error::NotImplemented(format!(
        "{what} are not in this version: to change the nodes, restart all of them with a new VIEW"
    ))
}

fn question(node: &Node, route: &Route) -> Result<Value, Error> {
    let standing = node.standing();
    let serving = standing.serving();
    match route {
        Route::KeyCount => key_count(node, serving),
        Route::Shards => shards(node, serving),
        Route::Shard(id) => {
            let info = node.shard_info(id)?;
            let mut body = json!({ "message": "Shard information retrieved successfully" });
            merge(&mut body, serde_json::to_value(info).expect("our own types are JSON"));
            Ok(body)
        }
        _ => view(node, serving?),
    }
}

fn key_count(node: &Node, serving: Result<&Serving, Error>) -> Result<Value, Error> {
    let mut body = json!({ "message": "Key count retrieved successfully", "key-count": 0 });
    match serving {
        Ok(serving) => {
            if let Some(shard) = serving.own_shard {
                body["key-count"] = node.count().into();
                body["shard-id"] = serving.view.shards[shard].id.to_string().into();
            }
        }
        Err(error) if !node.is_passive() => return Err(error),
        Err(_) => {}
    }
    Ok(body)
}

fn shards(node: &Node, serving: Result<&Serving, Error>) -> Result<Value, Error> {
    let ids: Vec<String> = match serving {
        Ok(serving) => serving.view.shards.iter().map(|shard| shard.id.to_string()).collect(),
        Err(_) if node.is_passive() => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(json!({ "message": "Shard membership retrieved successfully", "shards": ids }))
}

fn view(node: &Node, serving: &Serving) -> Result<Value, Error> {
    let view = &serving.view;
    let mut shards = Vec::new();
    for (index, shard) in view.shards.iter().enumerate() {
        let mut row =
            serde_json::to_value(node.shard_info(&shard.id.to_string())?).expect("our own types are JSON");
        let ranges =
            view.ranges(index).map(|range| json!({ "from": range.from_hex(), "to": range.to_hex() }));
        row["leader"] = shard.replicas[0].as_str().into();
        row["ranges"] = ranges.collect();
        shards.push(row);
    }
    Ok(json!({
        "epoch": view.epoch,
        "cluster-id": serving.fingerprint,
        "repl-factor": view.repl_factor,
        "shards": shards,
    }))
}

fn merge(body: &mut Value, more: Value) {
    if let (Value::Object(body), Value::Object(more)) = (body, more) {
        body.extend(more);
    }
}
