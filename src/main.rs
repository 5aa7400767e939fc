//! The `evenkv` program.
fn main() {}
