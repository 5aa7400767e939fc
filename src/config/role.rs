//! What a node is, by its settings.

use std::net::SocketAddr;

use super::given::Settings;
use super::table::{FORWARDING_ADDRESS, REPL_FACTOR, VIEW};
use crate::model::address::{Address, is_loopback};
use crate::model::view::View;

/// What a node is by its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A node alone, main of whatever followers point to it.
    Single,
    /// Holds nothing and passes everything on to its main.
    Follower {
        /// The main's address.
        main: Address,
    },
    /// A node of the first view.
    Member {
        /// The first view.
        view: View,
    },
    /// A node that looks for a cluster at these addresses and triggers nothing.
    Passive {
        /// Where to look.
        seeds: Vec<Address>,
    },
}

impl Settings {
    /// What a node with this address is that listens there.
    ///
    /// # Errors
    /// A sentence that names the wrong setting and says what is allowed.
    pub(super) fn role(&self, own: Option<&Address>, listen: SocketAddr) -> Result<Role, String> {
        if let Some(main) = self.text(&FORWARDING_ADDRESS)? {
            if self.has(&VIEW) || self.has(&REPL_FACTOR) {
                return Err("FORWARDING_ADDRESS makes this node a follower, which has no view: \
                            unset VIEW and REPL_FACTOR, or unset FORWARDING_ADDRESS"
                    .to_owned());
            }
            if is_itself(&main, own, listen) {
                let own = own.map(|own| format!(" and has the ADDRESS {own}")).unwrap_or_default();
                return Err(format!(
                    "FORWARDING_ADDRESS is {main}, which is this node itself: it listens on {listen}{own}; \
                     allowed is the address of another node, the main"
                ));
            }
            return Ok(Role::Follower { main });
        }
        let factor = self.number(&REPL_FACTOR)?;
        let nodes = match (self.has(&VIEW), own) {
            (true, None) => {
                return Err(
                    "VIEW needs ADDRESS: set ADDRESS to this node's own host:port as the others reach it, \
                            one of VIEW to belong to it"
                        .to_owned(),
                );
            }
            (true, Some(_)) => self.text(&VIEW)?.unwrap_or_default(),
            (false, _) => vec![own.cloned().unwrap_or_else(|| "127.0.0.1".parse().expect("an address"))],
        };
        if own.is_some_and(|own| !nodes.contains(own)) {
            return Ok(Role::Passive { seeds: nodes });
        }
        let view = View::first(&nodes, factor).map_err(|error| format!("VIEW and REPL_FACTOR: {error}"))?;
        Ok(if nodes.len() == 1 { Role::Single } else { Role::Member { view } })
    }
}

/// Whether a follower would follow itself. Names are not resolved for that; but all names of loopback are one.
fn is_itself(main: &Address, own: Option<&Address>, listen: SocketAddr) -> bool {
    let is_own =
        |own: &Address| own == main || own.is_loopback() && main.is_loopback() && own.port() == main.port();
    let takes_loopback = listen.ip().is_unspecified() || is_loopback(listen.ip());
    own.is_some_and(is_own) || takes_loopback && main.is_loopback() && main.port() == listen.port()
}
