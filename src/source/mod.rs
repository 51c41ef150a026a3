//! What snapshots are made of: files, and databases. May depend on `repo`, `format` and below.

pub mod attributes;
pub mod capture;
pub mod exclude;
pub mod exclusive;
pub mod handles;
pub mod journal;
pub mod marker;
pub mod older;
pub mod owners;
pub mod postgres;
pub mod preset;
pub mod scratch;
mod segmenter;
pub mod spool;
pub mod sqlite;
pub mod stat;
pub mod steps;
pub mod target;
pub mod temporary;
