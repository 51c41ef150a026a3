//! What the commands do. Jobs may use `repo`, `source` and below, never each other, and never the terminal.

pub mod create;
pub mod forget;
pub mod policy;
pub mod prune;
