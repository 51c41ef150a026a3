//! Other services that OpenDAL knows, for those who build them in.

use std::collections::HashMap;
use std::sync::Arc;

use opendal::{HttpTransporter, OperationContext, Operator};

use super::Line;
use super::http::{Dialect, Transport};
use super::objects::Objects;
use super::place::{OtherPlace, Service};
use crate::error::{Error, Result};

/// What OpenDAL calls accounts and keys of a service, and their values.
pub type Options = HashMap<String, String>;

/// A container, and a prefix in it.
pub(super) fn open(place: &OtherPlace, mut options: Options, line: Arc<Line>) -> Result<Objects> {
    let prefix = format!("/{}", place.prefix);
    let container = place.container.clone();
    let own = match place.service {
        Service::Azblob => vec![("root", prefix), ("container", container)],
        Service::Gcs | Service::B2 => vec![("root", prefix), ("bucket", container)],
        Service::Webdav => {
            let scheme = if place.scheme.ends_with("+http") { "http" } else { "https" };
            vec![("root", prefix), ("endpoint", format!("{scheme}://{container}"))]
        }
    };
    options.extend(own.into_iter().map(|(key, value)| (key.to_owned(), value)));
    let refuse = |e: opendal::Error| {
        Error::refused(
            format!("{place} can't be used: {}", e.message()),
            "see \"Off-site\" in the README for what to set",
        )
    };
    let op = operator(place, options).map_err(|e| e.map_or_else(|| not_built_in(place), refuse))?;
    let transport = HttpTransporter::new(Transport::new(line, Dialect::Other, String::new(), None)?);
    let op = op.with_context(OperationContext::new().with_http_transport(transport));
    Ok(Objects { op, host: String::new(), renames: place.service == Service::Webdav })
}

fn not_built_in(place: &OtherPlace) -> Error {
    let feature = feature(place.service);
    Error::refused(
        format!("this program was built without {}://", place.scheme),
        format!("build it with `cargo install --locked --features {feature} --path .`"),
    )
}

fn feature(service: Service) -> &'static str {
    match service {
        Service::Azblob => "azblob",
        Service::Gcs => "gcs",
        Service::B2 => "b2",
        Service::Webdav => "webdav",
    }
}

/// Why there is no operator; `None`: the service was not built in.
type NoOperator = Option<opendal::Error>;

#[allow(unused_variables, reason = "without any of these features nothing is left of it")]
fn operator(place: &OtherPlace, options: Options) -> Result<Operator, NoOperator> {
    match place.service {
        #[cfg(feature = "azblob")]
        Service::Azblob => Operator::from_iter::<opendal::services::Azblob>(options).map_err(Some),
        #[cfg(feature = "gcs")]
        Service::Gcs => Operator::from_iter::<opendal::services::Gcs>(options).map_err(Some),
        #[cfg(feature = "b2")]
        Service::B2 => Operator::from_iter::<opendal::services::B2>(options).map_err(Some),
        #[cfg(feature = "webdav")]
        Service::Webdav => Operator::from_iter::<opendal::services::Webdav>(options).map_err(Some),
        #[allow(unreachable_patterns, reason = "with all of these features nothing is left for it")]
        _ => Err(None),
    }
}
