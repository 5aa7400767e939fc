//! Which program this is.

/// Its version, by which nodes compare each other.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that it was built of, or `unknown`: see `build.rs`.
pub const COMMIT: &str = env!("EVENKV_COMMIT");
/// Both, for people.
pub const FULL: &str = concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("EVENKV_COMMIT"), ")");
