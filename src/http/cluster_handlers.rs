//! Questions about the cluster, and view changes.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tiny_http::Method;

use super::answer::Answer;
use super::body::Limit;
use super::changes::{Awaited, add_causal};
use super::dispatch::Job;
use super::payload::Payload;
use super::routes::Route;
use super::turns::Turns;
use crate::error::Error;
use crate::model::address::Address;
use crate::model::limits::WantedLimits;
use crate::model::meta::Wanted;
use crate::model::range::HashRange;
use crate::model::shard::Audit;
use crate::model::store::Checksum;
use crate::node::audits::ClusterAudit;
use crate::node::host;
use crate::node::state::{Node, Serving};
use crate::reshard::controller::Controller;
use crate::reshard::prepare;

/// Bodies of such requests are small; a larger one is refused.
const BODY: Limit = Limit { bytes: 1 << 20, allowed: 1 << 20 };

/// What a handler wants to have said.
enum Reply {
    /// This body, with this status.
    Body(u16, Value),
    /// What comes of this view change, when it has ended.
    Later(u64),
}

/// Answers a question about the cluster, or begins a view change.
///
/// # Errors
/// What the request has to wait for before it can be answered.
pub fn answer(
    controller: &Controller,
    audits: &Turns,
    job: &mut Job,
    route: Route,
    id: &str,
) -> Result<Answer, Awaited> {
    let method = job.arrival.method().clone();
    let body = job.read_body(BODY, &controller.node.budget);
    let payload = body.as_ref().map_err(Clone::clone).and_then(|body| Payload::parse(&body.bytes));
    let causal = payload.as_ref().ok().and_then(|payload| payload.causal_context().ok().flatten());
    let more = causal.map(|causal| format!(",\"causal-context\":{causal}")).unwrap_or_default();
    if method == Method::Get {
        host::run(controller.node.catch_up());
    }
    let result = match (&body, route, &method) {
        (Err(error), _, _) => Err(error.clone()),
        (Ok(body), Route::ViewChange, Method::Put) => {
            let context = payload.as_ref().map_or(Ok(None), Payload::causal_context).map(|_| ());
            change(controller, &body.bytes, context, is_async(job))
        }
        (_, Route::ViewChange, Method::Delete) => host::run(controller.cancel()).map(|id| {
            let id = format!("{id:016x}");
            Reply::Body(200, json!({ "message": "View change cancelled", "change-id": id }))
        }),
        (_, Route::ViewChange, Method::Get) => {
            host::run(controller.status()).map(|body| Reply::Body(200, body))
        }
        (_, Route::Audit, Method::Get) => {
            audits.share(|| audit(&controller.node)).map(|body| Reply::Body(200, body))
        }
        (_, _, Method::Get) => question(&controller.node, route, id).map(|body| Reply::Body(200, body)),
        _ => Err(Error::MethodNotAllowed(route.allow())),
    };
    match result {
        Err(error) => Ok(Answer::error(&error, &method, &more)),
        Ok(Reply::Later(change)) => Err(Awaited { change, causal: causal.map(str::to_owned) }),
        Ok(Reply::Body(status, mut body)) => {
            add_causal(&mut body, causal);
            let answer = Answer::json(status, body.to_string().into_bytes());
            let answer = match body["epoch"].as_u64().filter(|_| route == Route::View) {
                Some(epoch) => answer.with("ETag", format!("\"{epoch}\"")),
                None => answer,
            };
            Ok(if status == 202 { answer.with("Location", "/kv-store/view-change") } else { answer })
        }
    }
}

fn is_async(job: &Job) -> bool {
    let headers = job.arrival.request.headers();
    let preferences = headers.iter().filter(|header| header.field.equiv("Prefer"));
    let mut named = preferences.flat_map(|header| header.value.as_str().split(','));
    // A preference may have parameters.
    named.any(|name| name.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("respond-async"))
}

fn change(
    controller: &Controller,
    body: &[u8],
    context: Result<(), Error>,
    is_async: bool,
) -> Result<Reply, Error> {
    let (wanted, dry_run) = read_wanted(&controller.node, body)?;
    context?;
    if dry_run {
        let planned = host::run(controller.plan(&wanted))?;
        let mut body = json!({ "message": "View change planned" });
        let epoch = controller.node.serving_state().serving()?.state.view.epoch;
        body["epoch"] = epoch.into();
        merge(&mut body, serde_json::to_value(planned).expect("our own types are JSON"));
        return Ok(Reply::Body(200, body));
    }
    let id = host::run(controller.begin(&wanted))?;
    if is_async {
        let id = format!("{id:016x}");
        return Ok(Reply::Body(202, json!({ "message": "View change accepted", "change-id": id })));
    }
    Ok(Reply::Later(id))
}

/// A request that is wrong: what, and what is allowed.
fn wrong<T>(what: &str, allowed: &str) -> Result<T, Error> {
    Err(Error::BadRequest(format!("{what}: allowed is {allowed}")))
}

/// Reads what a view change is asked to do.
fn read_wanted(node: &Node, body: &[u8]) -> Result<(Wanted, bool), Error> {
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| Error::BadRequest(format!("The body is not JSON: {error}; allowed is {FORM}")))?;
    let Value::Object(fields) = &body else { return wrong("The body is no JSON object", FORM) };
    let known = ["view", "repl-factor", "limits", "dry-run", "accept-loss", "causal-context"];
    if let Some(name) = fields.keys().find(|name| !known.contains(&name.as_str())) {
        return wrong(&format!("There is no field {name}"), FORM);
    }
    let nodes = read_nodes(fields)?;
    let serving_state = node.serving_state();
    let serving = serving_state.serving()?;
    let repl_factor = match fields.get("repl-factor") {
        None | Some(Value::Null) => serving.state.view.repl_factor,
        Some(factor) => match factor.as_u64().and_then(|factor| usize::try_from(factor).ok()) {
            Some(factor) if factor > 0 => factor,
            _ => return wrong("repl-factor is no whole number of at least 1", FORM),
        },
    };
    let dry_run = match fields.get("dry-run") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(dry_run)) => *dry_run,
        Some(_) => return wrong("dry-run is neither true nor false", FORM),
    };
    let (limits, accept_loss) = (read_limits(fields)?, read_accept_loss(fields)?);
    if !node.has_address && nodes.iter().any(|named| *named != node.address) {
        return wrong(
            "This node was started without ADDRESS, so others cannot be told where it is",
            "a view of other nodes once it is started with ADDRESS",
        );
    }
    let wanted = Wanted { nodes, repl_factor, accept_loss, limits };
    match prepare::wrong(&serving.state, &wanted) {
        Some(reason) => Err(Error::BadRequest(reason)),
        None => Ok((wanted, dry_run)),
    }
}

fn read_nodes(fields: &Map<String, Value>) -> Result<Vec<Address>, Error> {
    let nodes = match fields.get("view") {
        Some(Value::String(list)) => Address::parse_list(list),
        Some(Value::Array(list)) if list.iter().all(Value::is_string) => {
            let list: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            // A comma within one of them must not make two of it.
            match list.iter().find(|text| text.contains(',')) {
                Some(text) => text.parse::<Address>().map(|address| vec![address]),
                None => Address::parse_list(&list.join(",")),
            }
        }
        Some(_) => return wrong("view is neither a text nor a list of texts", FORM),
        None => return wrong("view is missing", FORM),
    };
    nodes.map_err(|error| Error::BadRequest(format!("view: {error}")))
}

fn read_limits(fields: &Map<String, Value>) -> Result<WantedLimits, Error> {
    match fields.get("limits") {
        None | Some(Value::Null) => Ok(WantedLimits::default()),
        Some(Value::Object(limits)) => WantedLimits::deserialize(limits)
            .or_else(|error| wrong(&format!("limits is wrong, {error}"), LIMITS_FORM)),
        Some(_) => wrong("limits is no JSON object", LIMITS_FORM),
    }
}

fn read_accept_loss(fields: &Map<String, Value>) -> Result<Vec<u32>, Error> {
    match fields.get("accept-loss") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(ids)) => {
            // As a set: a list of any length that names one shard is no more work than one name.
            let ids: Option<BTreeSet<u32>> = ids.iter().map(|id| id.as_str()?.parse().ok()).collect();
            match ids {
                Some(ids) => Ok(ids.into_iter().collect()),
                None => wrong("accept-loss has something else than ids of shards", FORM),
            }
        }
        Some(_) => wrong("accept-loss is no list", FORM),
    }
}

/// What the body of a view change looks like.
const FORM: &str = r#"{"view":"host:port,host:port","repl-factor":1,"limits":{"max-key-length":1024,"max-value-length":8388608},"dry-run":false,"accept-loss":["2"]}, all but view optional"#;
/// What its limits look like.
const LIMITS_FORM: &str = r#"{"max-key-length":1024,"max-value-length":8388608}, in bytes, both optional"#;

fn question(node: &Node, route: Route, id: &str) -> Result<Value, Error> {
    let serving_state = node.serving_state();
    let serving = serving_state.serving();
    match route {
        Route::KeyCount => key_count(node, serving),
        Route::Shards => shards(node, serving),
        Route::Shard => {
            let serving = serving?;
            let shards = &serving.state.view.shards;
            let shard = shards.iter().find(|shard| shard.id.to_string() == id).ok_or_else(|| {
                Error::NotFound(format!("There is no shard {id}: allowed is 1 to {}", shards.len()))
            })?;
            let info = host::run(node.shard_info(serving, shard));
            let mut body = json!({ "message": "Shard information retrieved successfully" });
            merge(&mut body, serde_json::to_value(info).expect("our own types are JSON"));
            Ok(body)
        }
        _ => Ok(whole_view(node, serving?)),
    }
}

fn key_count(node: &Node, serving: Result<&Serving, Error>) -> Result<Value, Error> {
    let mut body = json!({ "message": "Key count retrieved successfully", "key-count": 0 });
    match serving {
        Ok(serving) => {
            if let Some(shard) = node.named_shard(serving) {
                body["key-count"] = host::run(node.count_of(serving, shard)).unwrap_or_default().into();
                body["shard-id"] = shard.id.to_string().into();
            }
        }
        Err(error) if !node.is_passive() => return Err(error),
        Err(_) => {}
    }
    Ok(body)
}

fn shards(node: &Node, serving: Result<&Serving, Error>) -> Result<Value, Error> {
    let ids: Vec<String> = match serving {
        Ok(serving) => serving.state.view.shards.iter().map(|shard| shard.id.to_string()).collect(),
        Err(_) if node.is_passive() => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(json!({ "message": "Shard membership retrieved successfully", "shards": ids }))
}

/// All of it is of one view, also where the node learns of another one meanwhile.
fn whole_view(node: &Node, serving: &Serving) -> Value {
    let view = &serving.state.view;
    let mut shards = Vec::new();
    for (index, shard) in view.shards.iter().enumerate() {
        let info = host::run(node.shard_info(serving, shard));
        let mut row = serde_json::to_value(info).expect("our own types are JSON");
        let ranges =
            view.ranges(index).map(|range| json!({ "from": range.from_hex(), "to": range.to_hex() }));
        row["leader"] = node.leader_of(shard).map_or(Value::Null, |leader| leader.as_str().into());
        row["ranges"] = ranges.collect();
        shards.push(row);
    }
    let mut body = json!({
        "epoch": view.epoch,
        "cluster-id": serving.state.cluster,
        "repl-factor": view.repl_factor,
        "shards": shards,
    });
    let down: Vec<Address> = node.troubles().unreached;
    if !down.is_empty() {
        body["down"] = json!(down);
    }
    body
}

fn audit(node: &Node) -> Result<Value, Error> {
    host::run(node.audit()).map(|audit| shown_audit(&audit))
}

fn shown_audit(audit: &ClusterAudit) -> Value {
    let ClusterAudit { state, shards, verdict } = audit;
    let sum: Checksum = verdict.shown.iter().flatten().map(|audit| audit.checksum).sum();
    // Not known where one of them is not.
    let content: Option<Checksum> = verdict.shown.iter().map(|audit| audit.as_ref()?.content).sum();
    let is_well =
        |id: u32, node: Option<&Address>| !verdict.problems.iter().any(|one| one.is_about(id, node));
    let shards = state.view.shards.iter().zip(shards).zip(&verdict.shown).map(|((shard, audits), shown)| {
        let ok = is_well(shard.id, None);
        let mut row = json!({ "shard-id": shard.id.to_string(), "ok": ok, "replicas": shard.replicas });
        merge(&mut row, figures(shown.as_ref()));
        if shard.replicas.len() > 1 {
            let checked = audits.replicas.iter().map(|(replica, audit)| {
                let mut row = json!({ "replica": replica, "ok": is_well(shard.id, Some(replica)) });
                merge(&mut row, figures(audit.as_ref().ok()));
                row
            });
            row["replicas-checked"] = checked.collect();
        }
        row
    });
    let span = |range: &HashRange| json!({ "from": range.from_hex(), "to": range.to_hex() });
    let doubled = verdict.coverage.doubled.iter().map(|(range, owners)| {
        let owners: Vec<String> = owners.iter().map(u32::to_string).collect();
        let mut row = span(range);
        row["shards"] = owners.into();
        row
    });
    json!({
        "message": "Audit retrieved successfully",
        "ok": verdict.is_ok(),
        "epoch": state.view.epoch,
        "keys": sum.pairs,
        "checksum": format!("{:032x}", sum.sum),
        "content-checksum": content.map(|content| format!("{:032x}", content.sum)),
        "shards": shards.collect::<Vec<_>>(),
        "missing-ranges": verdict.coverage.missing.iter().map(span).collect::<Vec<_>>(),
        "doubled-ranges": doubled.collect::<Vec<_>>(),
        "problems": verdict.problems.iter().map(|problem| &problem.text).collect::<Vec<_>>(),
    })
}

fn figures(audit: Option<&Audit>) -> Value {
    json!({
        "key-count": audit.map(|audit| audit.pairs),
        "log-index": audit.map(|audit| audit.index),
        "checksum": audit.map(|audit| format!("{:032x}", audit.checksum.sum)),
        "stray": audit.map(|audit| audit.stray),
    })
}

fn merge(body: &mut Value, more: Value) {
    if let (Value::Object(body), Value::Object(more)) = (body, more) {
        body.extend(more);
    }
}
