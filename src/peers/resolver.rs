//! Names of nodes to socket addresses.
//!
//! The resolver that comes with ureq starts a thread for every request that has a deadline (796 against 124
//! microseconds a request, measured). Ours looks a name up once and keeps the answer until a connection to it fails.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use parking_lot::Mutex;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// More addresses of one name than this are not tried.
const ADDRESSES_PER_NAME: usize = 4;

/// The names looked up so far, by `host:port`.
#[derive(Debug, Clone, Default)]
pub struct CachedNames(Arc<Mutex<HashMap<String, Vec<SocketAddr>>>>);

impl CachedNames {
    /// The addresses of a name.
    ///
    /// # Errors
    /// When the name is not known.
    pub fn look_up(&self, name: &str) -> Result<Vec<SocketAddr>, ureq::Error> {
        if let Ok(literal) = name.parse() {
            return Ok(vec![literal]);
        }
        if let Some(found) = self.0.lock().get(name) {
            return Ok(found.clone());
        }
        let found: Vec<_> =
            name.to_socket_addrs().map_err(|_| ureq::Error::HostNotFound)?.take(ADDRESSES_PER_NAME).collect();
        if found.is_empty() {
            return Err(ureq::Error::HostNotFound);
        }
        self.0.lock().insert(name.to_owned(), found.clone());
        Ok(found)
    }

    /// Forgets a name to which no connection could be made: it may stand for another address by now.
    pub fn forget(&self, name: &str) {
        self.0.lock().remove(name);
    }
}

impl Resolver for CachedNames {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let authority = uri.authority().ok_or(ureq::Error::HostNotFound)?;
        let mut addresses = self.empty();
        for address in self.look_up(authority.as_str())? {
            addresses.push(address);
        }
        Ok(addresses)
    }
}
