//! The program as its users meet it: the real binary, real files, real SQLite writers in other processes.
//!
//! One test binary, so that it is linked once. Each test has a [`world::World`] of its own: home, cache, configuration
//! and working directory in a temporary directory, and no variable inherited that the program knows. Helper processes
//! are this same binary, see [`roles`].

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::type_complexity)] // A test that panics has failed, which is what it is for.

mod application;
mod archives;
mod bad_luck;
mod cli;
mod coming_back;
mod conformance;
mod copying;
mod diffs;
mod far_away;
mod faults;
mod files;
mod golden;
mod guard;
mod looking;
mod marks;
mod one_unit;
mod picture;
mod postgres;
mod postgres_server;
mod presets;
mod proving;
mod prune;
mod repair;
mod restoring;
mod restoring_attributes;
mod restoring_on;
mod roles;
mod selection;
mod servers;
mod sqlite;
mod sqlite_load;
mod sqlite_modes;
mod sqlite_unchanged;
mod sqlite_unsound;
mod storage;
mod tidy;
mod world;
