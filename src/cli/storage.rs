//! What a repository on a network was asked for, and what a snapshot would cost there.

use serde_json::{Value, json};

use snapshot::backend::Usage;
use snapshot::backend::remote::Requests;
use snapshot::job::create::Summary;

use super::output::{count, size};

/// Prices to give an idea, in dollars: S3 Standard in us-east-1, as listed in 2026. A put or list, a get, and a gigabyte
/// (10^9 bytes) for a month; deleting is free.
const PUT_PRICE: f64 = 0.005 / 1000.0;
const GET_PRICE: f64 = 0.0004 / 1000.0;
const MONTH_PRICE: f64 = 0.023 / 1e9;

/// For programs.
pub fn to_json(usage: &Usage) -> Value {
    let Requests { put, get, list, delete, other } = usage.requests;
    json!({
        "requests": {"put": put, "get": get, "list": list, "delete": delete, "other": other},
        "bytes_up": usage.bytes_up,
        "bytes_down": usage.bytes_down,
        "retries": usage.retries,
    })
}

/// For people.
pub fn to_text(usage: &Usage) -> String {
    let Requests { put, get, list, delete, other } = usage.requests;
    let all = count(put + get + list + delete + other, "request", "requests");
    let mut text = format!("{all} ({put} put, {get} get, {list} list, {delete} delete, {other} other)");
    text += &format!(", {} up, {} down", size(usage.bytes_up), size(usage.bytes_down));
    if usage.retries > 0 {
        text += &format!(", {}", count(usage.retries, "repetition", "repetitions"));
    }
    text
}

/// What taking the snapshot would take that a dry run reckoned: `asked` is what that has asked for itself.
pub fn estimate(summary: &Summary, asked: Usage) -> Usage {
    let stored = summary.snapshot.counts.bytes_stored;
    let mut all = asked;
    // Packs and their index, the snapshot, and the session, whose folder is listed twice more.
    all.requests.put += summary.packs + u64::from(summary.packs > 0) + 2;
    all.requests.list += 2;
    all.requests.delete += 1;
    all.bytes_up += stored;
    all
}

/// The estimate in words, with a price to give an idea.
pub fn estimate_text(cost: &Usage, stored_bytes: u64) -> String {
    let Requests { put, get, list, other, .. } = cost.requests;
    let requests = (put + list + other) as f64 * PUT_PRICE + get as f64 * GET_PRICE;
    let month = stored_bytes as f64 * MONTH_PRICE;
    format!(
        "would take about {}; at the list prices of S3 Standard (us-east-1, 2026), {requests:.5} $ once and {month:.5} $ a month",
        to_text(cost)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_are_shown() {
        let requests = Requests { put: 1, get: 2, list: 3, delete: 4, other: 5 };
        let usage = Usage { requests, bytes_up: 1024, bytes_down: 2048, retries: 1 };
        let shown = "15 requests (1 put, 2 get, 3 list, 4 delete, 5 other), 1.0 KiB up, 2.0 KiB down, 1 repetition";
        assert_eq!(to_text(&usage), shown);
        assert_eq!(to_json(&usage)["requests"]["delete"], 4);
        assert_eq!(to_json(&usage)["bytes_down"], 2048);
        let text = estimate_text(&usage, 1_000_000_000);
        assert!(text.ends_with("0.00005 $ once and 0.02300 $ a month"), "{text}");
    }
}
