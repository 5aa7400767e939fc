//! What each path takes of who asks: the table of roles.

use tiny_http::Method;

use super::routes::Route;
use crate::access::{Reach, Role};
use crate::error::Error;
use crate::node::state::Node;

/// The header of a token.
pub const AUTHORIZATION: &str = "Authorization";

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Anybody.
    Open,
    /// Who has a token of this role, or of a higher one.
    Role(Role),
    /// Other nodes, by their secret: see [`check_sender`](super::node_handlers::check_sender).
    Nodes,
}

/// Who may ask a route, by this method.
pub const fn door(route: Route, method: &Method) -> Door {
    let reads = matches!(method, Method::Get | Method::Head | Method::Options);
    match route {
        // Each request on such a connection is judged by itself.
        Route::Livez | Route::Readyz | Route::OpenApi | Route::Page | Route::PageFile | Route::Relay => {
            Door::Open
        }
        Route::Metrics
        | Route::V1Status
        | Route::KeyCount
        | Route::Shards
        | Route::Shard
        | Route::View
        | Route::Audit => Door::Role(Role::Monitor),
        Route::ViewChange if reads => Door::Role(Role::Monitor),
        Route::ViewChange => Door::Role(Role::Admin),
        Route::Watch | Route::V1Export => Door::Role(Role::Read),
        Route::Key | Route::V1Key | Route::V1List if reads => Door::Role(Role::Read),
        Route::Key | Route::V1Key | Route::V1List | Route::V1Batch => Door::Role(Role::Write),
        Route::NodeKey
        | Route::NodeConditionalKey
        | Route::NodeTypedKey
        | Route::NodeTimedKey
        | Route::NodeBatch
        | Route::NodeHello
        | Route::NodeNews
        | Route::NodeOrders
        | Route::NodeQuestions
        | Route::NodeList
        | Route::NodeTransfer
        | Route::NodeRaft
        | Route::NodeRequests
        | Route::NodeRecover => Door::Nodes,
    }
}

/// Judges who asks; the keys that the request may be about. A path that leads nowhere is told to nobody without a token, either.
///
/// # Errors
/// [`Error::Unauthorized`] or [`Error::Forbidden`].
pub fn judge<'a>(
    node: &Node,
    route: Option<Route>,
    method: &Method,
    mut headers: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Reach, Error> {
    if !node.access.is_guarded() {
        return Ok(Reach::default());
    }
    let needed = match route.map_or(Door::Role(Role::Monitor), |route| door(route, method)) {
        Door::Open | Door::Nodes => return Ok(Reach::default()),
        Door::Role(role) => role,
    };
    let header = headers.find(|(name, _)| name.eq_ignore_ascii_case(AUTHORIZATION));
    node.access.judge(needed, header.map(|(_, value)| value))
}
