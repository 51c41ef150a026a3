//! What a service's errors mean, in words, and what the user can do about them.

use http::{HeaderMap, StatusCode};
use opendal::ErrorKind;

use super::failure::{Failure, Remedy};
use super::http::is_plain;

/// From how many seconds on a difference of clocks is told when something is denied.
const SKEW_SECS: i64 = 5 * 60;

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Failure {}

/// What an answer that is no success means; `None` for one that the caller understands. `ahead`: how far the server's
/// clock is ahead of ours, in seconds.
pub(super) fn failure(status: StatusCode, headers: Option<&HeaderMap>, text: &[u8], ahead: i64) -> Option<Failure> {
    let text = String::from_utf8_lossy(text);
    let code = element(&text, "Code").unwrap_or_default();
    if is_plain(status) && code != "NoSuchBucket" {
        return None;
    }
    let header = |name: &str| headers.and_then(|h| h.get(name)?.to_str().ok()).map(str::to_owned);
    let region = header("x-amz-bucket-region").or_else(|| element(&text, "Region").map(str::to_owned));
    let said = said(status, code, element(&text, "Message"));
    Some(of_code(code, &said, ahead, region.as_deref()).unwrap_or_else(|| of_status(status, said)))
}

/// Code, status and words of an answer.
fn said(status: StatusCode, code: &str, message: Option<&str>) -> String {
    let status = status.to_string();
    let name = if code.is_empty() { String::new() } else { format!(", {code}") };
    match message {
        Some(message) if !message.is_empty() => format!("{message} ({status}{name})"),
        _ => format!("{status}{name}"),
    }
}

/// What a code of S3 means; `None` for one that says no more than the status.
fn of_code(code: &str, said: &str, ahead: i64, region: Option<&str>) -> Option<Failure> {
    let hopeless = |why: &str, hint: &str| Some(Failure::hopeless(format!("{why}: {said}"), hint));
    match code {
        "RequestTimeTooSkewed" => Some(skewed(ahead)),
        "InvalidAccessKeyId" => hopeless(
            "the service does not know the access key",
            "check AWS_ACCESS_KEY_ID, or the profile; another service needs another endpoint (AWS_ENDPOINT_URL)",
        ),
        "SignatureDoesNotMatch" => hopeless(
            "the secret key does not fit the access key",
            "check AWS_SECRET_ACCESS_KEY, or the profile, for a lost or added character",
        ),
        "ExpiredToken" | "TokenRefreshRequired" | "InvalidToken" => hopeless(
            "the credentials are no longer valid",
            "get new ones and run the command again; what was stored already is found again",
        ),
        "NoSuchBucket" => hopeless("there is no such bucket", "make the bucket first, or check its name in --repo"),
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => {
            let hint = match region {
                Some(region) => format!("set AWS_REGION={region}"),
                None => "set AWS_REGION to the bucket's region, and AWS_ENDPOINT_URL to the service's address".into(),
            };
            hopeless("the bucket is in another region", &hint)
        }
        "QuotaExceeded" | "XMinioStorageFull" | "InsufficientCapacity" | "StorageFull" => {
            Some(Failure { full: true, ..Failure::new(Remedy::Hint, said) })
        }
        "BadDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" | "IncompleteBody" => {
            Some(Failure::again(format!("the object did not arrive as it was sent: {said}")))
        }
        "SlowDown"
        | "RequestTimeout"
        | "InternalError"
        | "ServiceUnavailable"
        | "OperationAborted"
        | "ConditionalRequestConflict"
        | "TooManyRequests" => Some(Failure::again(said)),
        "AccessDenied" if ahead.abs() >= SKEW_SECS => Some(skewed(ahead)),
        _ => None,
    }
}

fn skewed(ahead: i64) -> Failure {
    let word = if ahead > 0 { "behind" } else { "ahead of" };
    let (secs, minutes) = (ahead.unsigned_abs(), ahead.unsigned_abs() / 60);
    let by = if minutes == 0 { format!("{secs} s") } else { format!("{} h {} min", minutes / 60, minutes % 60) };
    Failure::hopeless(
        format!("the service refuses requests of another time: this machine's clock is {by} {word} the server's"),
        "set this machine's clock",
    )
}

fn of_status(status: StatusCode, said: String) -> Failure {
    match status.as_u16() {
        408 | 409 | 425 | 429 | 499 | 500 | 502 | 503 | 504 => Failure::again(said),
        401 | 403 => Failure::hopeless(
            format!("access is denied: {said}"),
            "check what the key may do in this bucket: it needs to put, get and list, and to delete for prune and forget",
        ),
        507 => Failure { full: true, ..Failure::new(Remedy::Hint, said) },
        300..=399 => Failure::hopeless(
            format!("the service sends elsewhere: {said}"),
            "set AWS_REGION to the bucket's region, and AWS_ENDPOINT_URL to the service's address",
        ),
        500..=599 if status.as_u16() != 501 => Failure::again(said),
        _ => Failure::hopeless(said, "check the endpoint: is it the address of an S3 service?"),
    }
}

/// The text of the first element of this name.
fn element<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let from = text.find(&format!("<{name}>"))? + name.len() + 2;
    let rest = text.get(from..)?;
    rest.get(..rest.find('<')?)
}

/// Whether an answer was shorter or longer than its headers or the request say: OpenDAL has no kind for that.
pub(super) fn is_of_another_length(error: &opendal::Error) -> bool {
    let message = error.message();
    ["got too little data", "got too much data"].iter().any(|words| message.contains(words))
}

/// What an error of OpenDAL means.
pub(super) fn of_opendal(error: &opendal::Error) -> Failure {
    use std::error::Error as _;
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(failure) = inner.downcast_ref::<Failure>() {
            return failure.clone();
        }
        source = inner.source();
    }
    if error.kind() == ErrorKind::NotFound {
        return Failure::new(Remedy::Missing, "");
    }
    let text = error.to_string();
    if text.contains("credential") {
        return Failure::hopeless(
            "there are no credentials for S3",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile that has them",
        );
    }
    // An error within an answer that is a success as a whole.
    let code = error.message().split("code: \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
    if let Some(failure) = of_code(code, error.message(), 0, None) {
        return failure;
    }
    if code == "AccessDenied" || error.kind() == ErrorKind::PermissionDenied {
        return of_status(StatusCode::FORBIDDEN, error.message().to_owned());
    }
    if is_of_another_length(error) {
        return Failure::again("the answer has another length than it should");
    }
    if error.is_temporary() || error.kind() == ErrorKind::RateLimited {
        return Failure::again(error.message());
    }
    Failure::hopeless(error.message(), "report this with the service's name")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, code: &str, ahead: i64) -> Option<Failure> {
        let text = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>said</Message><Region>r</Region></Error>"
        );
        failure(StatusCode::from_u16(status).unwrap(), None, text.as_bytes(), ahead)
    }

    #[test]
    fn each_answer_has_its_remedy() {
        for (status, code, remedy, hint) in [
            (403, "InvalidAccessKeyId", Remedy::Hint, "AWS_ACCESS_KEY_ID"),
            (403, "SignatureDoesNotMatch", Remedy::Hint, "AWS_SECRET_ACCESS_KEY"),
            (403, "AccessDenied", Remedy::Hint, "what the key may do"),
            (403, "", Remedy::Hint, "what the key may do"),
            (400, "ExpiredToken", Remedy::Hint, "get new ones"),
            (404, "NoSuchBucket", Remedy::Hint, "make the bucket"),
            (301, "PermanentRedirect", Remedy::Hint, "AWS_REGION=r"),
            (400, "AuthorizationHeaderMalformed", Remedy::Hint, "AWS_REGION=r"),
            (400, "BadDigest", Remedy::Again, ""),
            (400, "RequestTimeout", Remedy::Again, ""),
            (409, "ConditionalRequestConflict", Remedy::Again, ""),
            (429, "", Remedy::Again, ""),
            (500, "InternalError", Remedy::Again, ""),
            (502, "", Remedy::Again, ""),
            (503, "SlowDown", Remedy::Again, ""),
            (501, "NotImplemented", Remedy::Hint, "S3 service"),
            (400, "", Remedy::Hint, "S3 service"),
        ] {
            let failure = answer(status, code, 0).unwrap();
            assert_eq!(failure.remedy, remedy, "{status} {code}");
            assert!(failure.hint.unwrap_or_default().contains(hint), "{status} {code}");
            assert!(failure.why.contains("said"), "{}", failure.why);
        }
    }

    #[test]
    fn what_the_caller_understands_is_left_to_it() {
        for (status, code) in [(404, "NoSuchKey"), (412, "PreconditionFailed"), (416, "InvalidRange")] {
            assert!(answer(status, code, 0).is_none(), "{status}");
        }
    }

    #[test]
    fn clocks_that_differ_are_told() {
        let failure = answer(403, "RequestTimeTooSkewed", 26 * 3600).unwrap();
        assert!(failure.why.contains("26 h 0 min behind the server's"), "{}", failure.why);
        let failure = answer(403, "AccessDenied", -600).unwrap();
        assert!(failure.why.contains("0 h 10 min ahead of the server's"), "{}", failure.why);
        assert!(answer(403, "SignatureDoesNotMatch", -600).unwrap().why.contains("secret key"));
    }

    #[test]
    fn a_full_store_is_told_as_such() {
        assert!(answer(403, "QuotaExceeded", 0).unwrap().full);
        assert!(answer(507, "", 0).unwrap().full);
        assert!(!answer(403, "AccessDenied", 0).unwrap().full);
    }
}
