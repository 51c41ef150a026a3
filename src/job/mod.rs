//! What the commands do. Jobs may use `repo`, `source` and below, never each other, and never the terminal.

pub mod cat;
pub mod check;
pub mod copy;
pub mod create;
#[cfg(test)]
mod damage_tests;
pub mod diff;
pub mod find;
pub mod forget;
pub mod load;
pub mod look;
pub mod policy;
pub mod prune;
pub mod repair;
pub mod restore;
#[cfg(test)]
mod sample;
pub mod stats;
pub mod tag;
pub mod unlock;
#[cfg(test)]
mod whole_tests;
