//! PostgreSQL: dumping databases with the server's own programs, and loading them again.
//!
//! The programs are `pg_dump`, `pg_dumpall`, `pg_restore` and `psql`, found along the PATH. A password in a URL is
//! handed to them in their environment, never on their command lines, and appears in no message.

mod child;
mod dump;
mod load;
mod url;

pub use child::{Child, Output};
pub use dump::{DumpHeader, dump, globals};
pub use load::{Clean, Load, Target};
pub use url::Url;
