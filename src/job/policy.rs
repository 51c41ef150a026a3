//! Retention: which snapshots a policy keeps, and why. Pure: knows no storage and no clock.
//!
//! Each source (host and source) is judged by itself. Periods are those of UTC, wherever this runs, so that two
//! machines never judge differently; weeks are those of ISO 8601, from Monday.
//!
//! Retention goes by the times that snapshots say, which whoever makes snapshots can forge, and by when the store first
//! had them, which only the store knows. A snapshot was made at the earlier of the two: a clock that was ahead does no
//! harm. It fills a slot only if that is credible: not in the future, not long after the store had it, not stored long
//! after one that was made later, and in the order of its source's generations. Of generations that contradict each
//! other, the largest set that is in order is believed, of equal ones the earlier generations. The others are kept,
//! since it can't be known what they are, and fill no slot, so that they push nothing out; `forget` drops them. What is
//! stored within a day counts as stored at once, so that a repository may be copied.
//!
//! A pinned snapshot is kept whatever the rules say; it fills slots like any other.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::error::{Error, Result};
use crate::format::cbor::Time;
use crate::repo::Named;

/// Why a pinned snapshot is kept.
pub const PINNED: &str = "pinned";
/// How far ahead of this machine's clock a snapshot's time may be, in seconds.
const CLOCK_TOLERANCE_SECS: i64 = 3600;
/// How far the clock of a machine and that of the store may be apart, in seconds.
pub const MAX_APART_SECS: i64 = 2 * 86_400;
/// What is stored within so many seconds counts as stored at once.
const AT_ONCE_SECS: i64 = 86_400;

/// What to keep. Each rule keeps by itself; a snapshot goes when none keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// The newest so many.
    pub last: Option<u32>,
    /// The newest of each of so many hours that have one.
    pub hourly: Option<u32>,
    /// The newest of each of so many days that have one.
    pub daily: Option<u32>,
    /// The newest of each of so many weeks that have one.
    pub weekly: Option<u32>,
    /// The newest of each of so many months that have one.
    pub monthly: Option<u32>,
    /// The newest of each of so many years that have one.
    pub yearly: Option<u32>,
    /// All that are at most so many seconds older than the newest of their source.
    pub within: Option<i64>,
    /// All that have one of these tags.
    pub tags: Vec<String>,
}

/// What a policy says of one snapshot.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The snapshot.
    pub named: Named,
    /// Why it is kept; empty if it is to be forgotten.
    pub keep: Vec<String>,
}

impl Policy {
    /// Whether no rule was given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the rules can't keep anything.
    fn keeps_nothing(&self) -> bool {
        let counts = [self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        counts.into_iter().flatten().all(|n| n == 0) && self.within.is_none_or(|secs| secs <= 0) && self.tags.is_empty()
    }
}

/// Judges snapshots by a policy that is not empty. The verdicts come in the order of the snapshots.
///
/// # Errors
/// [`Error::Refused`] if all snapshots of a source would go.
pub fn apply(policy: &Policy, snapshots: Vec<Named>, now: Time) -> Result<Vec<Verdict>> {
    if policy.keeps_nothing() {
        return Err(Error::refused(
            "this policy keeps nothing: every snapshot would be forgotten",
            "give at least one of the keep options a number above zero",
        ));
    }
    let mut verdicts: Vec<_> = snapshots.into_iter().map(|named| Verdict { named, keep: Vec::new() }).collect();
    let mut sources: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
    for (i, Verdict { named, .. }) in verdicts.iter().enumerate() {
        sources.entry((named.snapshot.host.clone(), named.snapshot.source.clone())).or_default().push(i);
    }
    for ((host, source), members) in sources {
        let mut group: Vec<_> = members.iter().map(|i| verdicts[*i].clone()).collect();
        if !judge(policy, &mut group, now) {
            return Err(Error::refused(
                format!("this policy would forget every snapshot of {source} on {host}"),
                "widen it, or leave that source out with --host and --source; `snapshot forget` drops single snapshots",
            ));
        }
        for (i, verdict) in members.into_iter().zip(group) {
            verdicts[i] = verdict;
        }
    }
    Ok(verdicts)
}

/// Judges the snapshots of one source; `false` if all would go, or all whose times are credible.
fn judge(policy: &Policy, group: &mut [Verdict], now: Time) -> bool {
    flag_incredible(group, now);
    let mut credible: Vec<&mut Verdict> = group.iter_mut().filter(|v| v.keep.is_empty()).collect();
    credible.sort_by_key(|v| std::cmp::Reverse((made(&v.named), v.named.snapshot.generation, v.named.id)));
    for (n, verdict) in (1..=policy.last.unwrap_or(0)).zip(&mut credible) {
        verdict.keep.push(if n == 1 { "last".into() } else { format!("last but {}", n - 1) });
    }
    for (count, name, format) in [
        (policy.hourly, "hourly", "%Y-%m-%d %H:00"),
        (policy.daily, "daily", "%Y-%m-%d"),
        (policy.weekly, "weekly", "%G-W%V"),
        (policy.monthly, "monthly", "%Y-%m"),
        (policy.yearly, "yearly", "%Y"),
    ] {
        keep_newest_of_each(&mut credible, count.unwrap_or(0), name, format);
    }
    let newest = credible.first().map_or(i64::MAX, |v| made(&v.named).secs);
    for verdict in &mut credible {
        let age = newest.saturating_sub(made(&verdict.named).secs);
        let within = policy.within.is_some_and(|secs| age <= secs);
        let mut reasons: Vec<_> = within.then(|| "within the span given".to_owned()).into_iter().collect();
        reasons.extend(policy.tags.iter().filter(|t| verdict.named.tags().contains(t)).map(|t| format!("tag {t}")));
        verdict.keep.append(&mut reasons);
    }
    // What is kept by its pin alone does not make up for all others going.
    let is_sane = credible.iter().any(|v| !v.keep.is_empty()) || credible.iter().all(|v| v.named.is_pinned());
    for verdict in group.iter_mut().filter(|v| v.named.is_pinned()) {
        verdict.keep.push(PINNED.into());
    }
    is_sane
}

/// Keeps the newest snapshot of each of the newest `count` periods; the snapshots are sorted newest first.
fn keep_newest_of_each(newest_first: &mut [&mut Verdict], count: u32, name: &str, format: &str) {
    let mut left = count;
    let mut last = None;
    for verdict in newest_first {
        let period = utc(made(&verdict.named)).map(|t| t.strftime(format).to_string());
        if left > 0 && last.as_ref() != Some(&period) {
            verdict.keep.push(format!("{name} {}", period.as_deref().unwrap_or("long ago")));
            left -= 1;
            last = Some(period);
        }
    }
}

/// A time as a date, unless it lies thousands of years away.
fn utc(time: Time) -> Option<jiff::Zoned> {
    let nanos = i32::try_from(time.nanos).ok()?;
    Timestamp::new(time.secs, nanos).ok().map(|t| t.to_zoned(TimeZone::UTC))
}

/// When a snapshot was made, at the latest.
fn made(named: &Named) -> Time {
    named.stored.map_or(named.snapshot.time, |stored| stored.min(named.snapshot.time))
}

/// Keeps the snapshots whose times are not credible, with the reason.
fn flag_incredible(group: &mut [Verdict], now: Time) {
    let latest = Time { secs: now.secs.saturating_add(CLOCK_TOLERANCE_SECS), ..now };
    let is_ahead = |named: &Named| {
        named.stored.is_some_and(|stored| named.snapshot.time.secs.saturating_sub(stored.secs) > MAX_APART_SECS)
    };
    let mut order: Vec<usize> = Vec::new();
    for (i, verdict) in group.iter_mut().enumerate() {
        if made(&verdict.named) > latest {
            verdict.keep.push("its time lies in the future".into());
        } else if is_ahead(&verdict.named) {
            verdict.keep.push("it says that it was made long after it was stored".into());
        } else {
            order.push(i);
        }
    }
    order.sort_by_key(|i| std::cmp::Reverse(made(&group[*i].named)));
    // Of those made later, when the first was stored.
    let mut first_stored = i64::MAX;
    order.retain(|i| {
        let Verdict { named, keep } = &mut group[*i];
        let Some(stored) = named.stored else { return true };
        let is_late = stored.secs > first_stored.saturating_add(AT_ONCE_SECS);
        if is_late {
            keep.push("it was stored long after one that was made later".into());
        }
        first_stored = first_stored.min(stored.secs);
        !is_late
    });
    order.sort_by_key(|i| {
        let named = &group[*i].named;
        (named.snapshot.generation, made(named))
    });
    let times: Vec<_> = order.iter().map(|i| made(&group[*i].named)).collect();
    let in_order = longest_in_order(&times);
    for (n, i) in order.into_iter().enumerate() {
        if !in_order.contains(&n) {
            group[i].keep.push("its time contradicts the order of its source's generations".into());
        }
    }
}

/// Positions of the longest run of times that never falls, gaps allowed; of equally long ones, one with early
/// positions. From the end to the start: `tails[n]` is the position at which a run of n + 1 to the end begins latest
/// in time, and a position found later, which is an earlier one, takes the place of its equals.
fn longest_in_order(times: &[Time]) -> HashSet<usize> {
    let mut tails: Vec<usize> = Vec::new();
    let mut next: Vec<Option<usize>> = vec![None; times.len()];
    for (i, time) in times.iter().enumerate().rev() {
        let length = tails.partition_point(|t| times[*t] >= *time);
        next[i] = length.checked_sub(1).map(|n| tails[n]);
        if length == tails.len() {
            tails.push(i);
        } else {
            tails[length] = i;
        }
    }
    std::iter::successors(tails.last().copied(), |i| next[*i]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::snapshot::{Counts, Snapshot};
    use crate::id::{BlobId, SnapshotId};

    const DAY: i64 = 86_400;
    /// Friday 2026-11-20, 12:00 UTC.
    const NOON: i64 = 1_795_176_000;

    fn named(generation: u64, secs: i64, tags: &[&str]) -> Named {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&generation.to_be_bytes());
        let snapshot = Snapshot {
            started: Time::default(),
            time: Time { secs, nanos: 0 },
            host: "h".into(),
            source: "/s".into(),
            generation,
            previous: None,
            paths: vec![],
            tags: tags.iter().map(|t| (*t).into()).collect(),
            tree: BlobId([0; 32]),
            counts: Counts::default(),
            program: String::new(),
            users: vec![],
            groups: vec![],
            slot: None,
            pinned: false,
            preset: None,
        };
        Named::new(SnapshotId(id), snapshot)
    }

    fn pinned(generation: u64, secs: i64) -> Named {
        let Named { id, snapshot, .. } = named(generation, secs, &[]);
        Named::new(id, Snapshot { pinned: true, ..snapshot })
    }

    fn kept(policy: &Policy, snapshots: Vec<Named>) -> Vec<(u64, String)> {
        let verdicts = apply(policy, snapshots, Time { secs: NOON, nanos: 0 }).unwrap();
        let kept = verdicts.iter().filter(|v| !v.keep.is_empty());
        kept.map(|v| (v.named.snapshot.generation, v.keep.join(", "))).collect()
    }

    fn generations(policy: &Policy, snapshots: Vec<Named>) -> Vec<u64> {
        kept(policy, snapshots).into_iter().map(|(n, _)| n).collect()
    }

    /// One every 12 hours, the newest now: generation 100 is now, 99 at midnight, 98 yesterday noon …
    fn twice_a_day() -> Vec<Named> {
        (1..=100u64).map(|n| named(n, NOON - (100 - n).cast_signed() * DAY / 2, &[])).collect()
    }

    #[test]
    fn slots_take_the_newest_of_each_period() {
        let of = |policy: Policy| generations(&policy, twice_a_day());
        let policy = Policy::default();
        assert_eq!(of(Policy { last: Some(3), ..policy.clone() }), [98, 99, 100]);
        assert_eq!(of(Policy { hourly: Some(2), ..policy.clone() }), [99, 100]);
        assert_eq!(of(Policy { daily: Some(3), ..policy.clone() }), [96, 98, 100]);
        // Weeks end on Sunday: 2026-11-15 noon is 5 days back.
        assert_eq!(of(Policy { weekly: Some(2), ..policy.clone() }), [90, 100]);
        assert_eq!(of(Policy { monthly: Some(2), ..policy.clone() }), [60, 100]);
        assert_eq!(of(Policy { yearly: Some(5), ..policy.clone() }), [100]);
        assert_eq!(of(Policy { within: Some(DAY), ..policy.clone() }), [98, 99, 100]);
        assert_eq!(of(Policy { daily: Some(1), weekly: Some(2), ..policy }), [90, 100]);
    }

    #[test]
    fn reasons_name_the_period() {
        let policy = Policy {
            last: Some(2),
            hourly: Some(1),
            daily: Some(1),
            weekly: Some(1),
            monthly: Some(1),
            yearly: Some(1),
            within: Some(1),
            tags: vec!["keep".into()],
        };
        let reasons = kept(&policy, vec![named(1, NOON - 99 * DAY, &["keep"]), named(2, NOON - 9, &["x", "keep"])]);
        assert_eq!(reasons[0], (1, "last but 1, tag keep".into()));
        let all = "last, hourly 2026-11-20 11:00, daily 2026-11-20, weekly 2026-W47, monthly 2026-11, yearly 2026, \
                   within the span given, tag keep";
        assert_eq!(reasons[1], (2, all.into()));
    }

    #[test]
    fn pinned_ones_stay_and_fill_slots() {
        let policy = Policy { last: Some(2), ..Policy::default() };
        let mut snapshots: Vec<_> = (1..=6).map(|n| named(n, n.cast_signed(), &[])).collect();
        snapshots[1] = pinned(2, 2);
        snapshots[5] = pinned(6, 6);
        snapshots.push(pinned(7, NOON + 9999));
        let why = |n: u64, why: &str| (n, why.to_owned());
        let future = "its time lies in the future, pinned";
        let expected = [why(2, "pinned"), why(5, "last but 1"), why(6, "last, pinned"), why(7, future)];
        assert_eq!(kept(&policy, snapshots), expected);
    }

    #[test]
    fn gaps_do_not_use_up_slots() {
        let snapshots = vec![named(1, NOON - 90 * DAY, &[]), named(2, NOON - 60 * DAY, &[]), named(3, NOON, &[])];
        assert_eq!(generations(&Policy { daily: Some(2), ..Policy::default() }, snapshots), [2, 3]);
    }

    #[test]
    fn forged_times_are_kept_and_push_nothing_out() {
        let policy = Policy { last: Some(1), ..Policy::default() };
        let mut snapshots: Vec<_> = (1..=5).map(|n| named(n, NOON - 1000 + n.cast_signed(), &[])).collect();
        snapshots.push(named(6, NOON + 7200, &[]));
        snapshots.push(named(7, i64::MAX, &[]));
        snapshots.push(named(8, 0, &[]));
        snapshots.push(named(9, i64::MIN, &[]));
        let kept = kept(&policy, snapshots);
        assert_eq!(kept.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [5, 6, 7, 8, 9]);
        assert_eq!(kept[0].1, "last");
        assert!(kept[1].1.contains("future") && kept[2].1.contains("future"));
        assert!(kept[3].1.contains("order") && kept[4].1.contains("order"));
        // One that lies ahead of those that follow.
        let snapshots = vec![named(1, 10, &[]), named(2, 90, &[]), named(3, 20, &[]), named(4, 30, &[])];
        assert_eq!(generations(&policy, snapshots), [2, 4]);
        // Of two that contradict each other the earlier generation is believed; neither goes.
        assert_eq!(generations(&policy, vec![named(1, 10, &[]), named(2, 5, &[])]), [1, 2]);
        // An hour's difference between clocks is none, nor are equal times or generations.
        assert_eq!(generations(&policy, vec![named(1, NOON, &[]), named(2, NOON + 3600, &[])]), [2]);
        assert_eq!(generations(&policy, vec![named(1, NOON, &[]), named(2, NOON, &[])]), [2]);
        assert_eq!(generations(&policy, vec![named(2, NOON, &[]), named(2, NOON - 5, &[])]).len(), 1);
    }

    /// As [`named`], stored so long after that.
    fn stored(generation: u64, secs: i64, after: i64) -> Named {
        let mut named = named(generation, secs, &[]);
        named.stored = Some(Time { secs: secs + after, nanos: 0 });
        named
    }

    #[test]
    fn what_comes_late_pushes_nothing_out() {
        let daily = Policy { daily: Some(5), ..Policy::default() };
        let days = |n: u64| NOON - (20 - n.cast_signed()) * DAY;
        let genuine = || (1..=20u64).map(|n| stored(n, days(n), 60));
        assert_eq!(generations(&daily, genuine().collect()), [16, 17, 18, 19, 20]);
        // Somebody who has the keys fills days that are past with something else, a little later each time.
        let forged = (15..=18u64).map(|n| stored(n, days(n) + 1000, NOON - days(n) - 900));
        let all = kept(&daily, genuine().chain(forged).collect());
        let believed = all.iter().filter(|(_, why)| why.starts_with("daily")).map(|(n, _)| *n);
        assert_eq!(believed.collect::<Vec<_>>(), [16, 17, 18, 19, 20]);
        assert_eq!(all.iter().filter(|(_, why)| why.contains("stored long after")).count(), 4);
        // All at once, as in a repository that was copied, in whatever order.
        let copied = (1..=20u64).map(|n| stored(n, days(n), NOON - days(n) - (n * 7 % 20).cast_signed() * 3600));
        assert_eq!(generations(&daily, copied.collect()), [16, 17, 18, 19, 20]);
    }

    #[test]
    fn a_clock_that_is_ahead_does_no_harm() {
        let daily = Policy { daily: Some(3), ..Policy::default() };
        // A day ahead, for a week, and then right again.
        let times = |n: u64| (NOON - (10 - n.cast_signed()) * DAY, if n < 7 { DAY } else { 0 });
        let snapshots = (1..=10u64).map(|n| stored(n, times(n).0 + times(n).1, 60 - times(n).1));
        assert_eq!(generations(&daily, snapshots.collect()), [8, 9, 10]);
        let policy = Policy { last: Some(1), ..Policy::default() };
        let ahead = kept(&policy, vec![stored(1, NOON - 900, 60), stored(2, NOON + 9 * DAY, -9 * DAY - 500)]);
        assert_eq!(ahead[0], (1, "last".into()));
        assert!(ahead[1].1.contains("long after it was stored"), "{ahead:?}");
    }

    #[test]
    fn in_order_is_the_longest() {
        let run = |secs: &[i64]| {
            let times: Vec<_> = secs.iter().map(|secs| Time { secs: *secs, nanos: 0 }).collect();
            let mut positions: Vec<_> = longest_in_order(&times).into_iter().collect();
            positions.sort_unstable();
            positions
        };
        assert_eq!(run(&[]), [0; 0]);
        assert_eq!(run(&[1, 2, 100, 3, 4]), [0, 1, 3, 4]);
        assert_eq!(run(&[5, 1]), [0]);
        assert_eq!(run(&[5, 5, 5]), [0, 1, 2]);
        assert_eq!(run(&[3, 1, 4, 1, 5, 9, 2, 6]).len(), 4);
    }

    #[test]
    fn what_would_drop_a_whole_source_is_refused() {
        let now = Time { secs: NOON, nanos: 0 };
        let refused = |policy: &Policy, snapshots: Vec<Named>| match apply(policy, snapshots, now) {
            Err(e @ Error::Refused { .. }) => e.to_string(),
            other => panic!("{other:?}"),
        };
        let zero = Policy { last: Some(0), daily: Some(0), ..Policy::default() };
        assert!(refused(&zero, vec![named(1, 0, &[])]).contains("keeps nothing"));
        let tagged = Policy { tags: vec!["gold".into()], ..Policy::default() };
        let mut other = named(1, 0, &[]);
        other.snapshot.source = "/other".into();
        assert!(refused(&tagged, vec![pinned(1, 0), named(2, 5, &[])]).contains("/s"));
        assert!(apply(&tagged, vec![pinned(1, 0), pinned(2, 5)], now).is_ok(), "nothing would go");
        assert!(refused(&tagged, vec![named(1, 0, &["gold"]), other]).contains("/other on h"));
        // A forged snapshot that stays does not make up for all others going.
        assert!(refused(&tagged, vec![named(1, 0, &[]), named(2, NOON + 9999, &[])]).contains("/s"));
        assert!(apply(&tagged, vec![], now).unwrap().is_empty());
        assert!(Policy::default().is_empty() && !zero.is_empty());
    }

    #[test]
    fn sources_do_not_compete() {
        let mut other = named(7, NOON, &[]);
        other.snapshot.host = "h2".into();
        let snapshots = vec![named(1, NOON - 5, &[]), named(2, NOON - 4, &[]), other];
        assert_eq!(generations(&Policy { last: Some(1), ..Policy::default() }, snapshots), [2, 7]);
    }
}
