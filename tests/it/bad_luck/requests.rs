//! Something goes wrong with one request of a run, whichever it is.

use std::fs;

use super::{Diary, PRUNE};
use crate::picture;
use crate::servers::proxy::{Fate, Proxy, Request};
use crate::world::Ran;

/// What a run gets over by asking again.
const PASSING: [Fate; 7] = [
    Fate::Unanswered,
    Fate::Error(500, "InternalError"),
    Fate::HalfSent,
    Fate::Error(503, "SlowDown"),
    Fate::Unheard,
    Fate::HalfAnswered,
    Fate::Error(429, "TooManyRequests"),
];

/// Runs a command again and again, each time with another request of it hit; ends when all were. Returns how many.
fn at_every_request(proxy: &Proxy, fates: &[Fate], mut run: impl FnMut(usize, Fate)) -> usize {
    for at in 0.. {
        let fate = fates[at % fates.len()];
        proxy.set_fate(move |request: &Request| if request.number == at as u64 { fate } else { Fate::Good });
        run(at, fate);
        let asked = proxy.seen().len();
        proxy.be_good();
        if asked <= at {
            return at;
        }
    }
    unreachable!()
}

/// The fates in turn, beginning at another one.
fn turned(by: usize) -> Vec<Fate> {
    PASSING.iter().cycle().skip(by).take(PASSING.len()).copied().collect()
}

#[track_caller]
fn assert_success(ran: Ran, at: usize, fate: Fate) {
    assert_eq!(ran.status, 0, "{fate:?} at request {at}: {}", ran.stderr);
}

#[test]
fn of_create() {
    let (mut diary, proxy) = Diary::behind_proxy();
    for fates in [turned(0), turned(3)] {
        let hit = at_every_request(&proxy, &fates, |at, fate| assert_success(diary.create(), at, fate));
        assert!(hit >= 8, "only {hit} requests");
    }
    assert_eq!(diary.assert_sound(), diary.states.len());
}

#[test]
fn of_restore() {
    let (mut diary, proxy) = Diary::behind_proxy();
    diary.create().expect(0);
    let expected = picture::of(&diary.world.work("data"));
    for fates in [turned(0), turned(5)] {
        let hit = at_every_request(&proxy, &fates, |at, fate| {
            // A machine that knows nothing asks most.
            fs::remove_dir_all(diary.world.at("cache")).ok();
            fs::remove_dir_all(diary.world.work("out")).ok();
            assert_success(diary.world.run(["restore", "latest", "--target", "out", "-q"]), at, fate);
            picture::assert_same(&picture::of(&diary.world.work("out/data")), &expected);
        });
        assert!(hit >= 5, "only {hit} requests");
    }
}

#[test]
fn of_prune() {
    let (mut diary, proxy) = Diary::behind_proxy();
    diary.create().expect(0);
    diary.create().expect(0);
    let hit = at_every_request(&proxy, &turned(0), |at, fate| {
        proxy_good_for(&proxy, || diary.create().expect(0), at, fate);
        assert_success(diary.world.run(PRUNE), at, fate);
    });
    assert!(hit >= 12, "only {hit} requests");
    assert_eq!(diary.assert_sound(), 2);
}

/// Does something undisturbed, then has the fate again.
fn proxy_good_for<T>(proxy: &Proxy, act: impl FnOnce() -> T, at: usize, fate: Fate) {
    proxy.be_good();
    act();
    proxy.set_fate(move |request: &Request| if request.number == at as u64 { fate } else { Fate::Good });
}

/// Denied is denied: at once, in words, with everything as it was.
#[test]
fn denied() {
    let (mut diary, proxy) = Diary::behind_proxy();
    diary.create().expect(0);
    let denied = [Fate::Error(403, "AccessDenied")];
    at_every_request(&proxy, &denied, |at, _| {
        let ran = diary.create();
        let seen = proxy.seen();
        // The config has a copy, and a failure to tidy up does no harm.
        let needs_it = seen.get(at).is_some_and(|r| !r.path().ends_with("/config") && !r.is_delete());
        assert_eq!(ran.status, i32::from(needs_it), "{:?}: {}", seen.get(at), ran.stderr);
        if needs_it {
            ran.names(["access is denied", "bucket"]);
        }
    });
    diary.create().expect(0);
    diary.assert_sound();
}

/// Bodies with another byte in them, or cut short without a word: of wrong bytes comes an error or another attempt, never a wrong file.
#[test]
fn wrong_bodies() {
    let (mut diary, proxy) = Diary::behind_proxy();
    diary.create().expect(0);
    let expected = picture::of(&diary.world.work("data"));
    let mut got_through = 0;
    // Lists of an S3 server have no checksum.
    let is_hit = |request: &Request| request.is_get();
    for (turn, at) in (0..2).flat_map(|turn| (0..30).map(move |at| (turn, at))) {
        proxy.set_fate(move |request| match is_hit(request) && request.number == at {
            true if at % 2 == turn => Fate::WrongAnswer,
            true => Fate::ShortAnswer,
            false => Fate::Good,
        });
        fs::remove_dir_all(diary.world.at("cache")).ok();
        fs::remove_dir_all(diary.world.work("out")).ok();
        let ran = diary.world.run(["restore", "latest", "--target", "out", "-q"]);
        match ran.status {
            0 => {
                picture::assert_same(&picture::of(&diary.world.work("out/data")), &expected);
                got_through += 1;
            }
            1 | 5 | 12 => drop(ran.names(["error: "])),
            other => panic!("request {at}: status {other}: {}", ran.stderr),
        }
    }
    proxy.be_good();
    assert!(got_through > 0);
    diary.create().expect(0);
    diary.assert_sound();
}

/// Lists of an earlier state, as some services give them for a while.
#[test]
fn stale_lists() {
    let (mut diary, proxy) = Diary::behind_proxy();
    let stale = |request: &Request| if request.is_list() { Fate::Stale } else { Fate::Good };
    diary.create().expect(0);
    proxy.forget_lists();
    diary.world.ok(PRUNE);
    for round in 0..4 {
        diary.create().expect(0);
        diary.create().expect(0);
        proxy.set_fate(stale);
        for ran in [diary.create(), diary.world.run(PRUNE), diary.world.run(["check"])] {
            assert!([0, 1, 4].contains(&ran.status), "round {round}: status {}: {}", ran.status, ran.stderr);
        }
        proxy.be_good();
        proxy.forget_lists();
        diary.assert_restores();
        diary.world.ok(PRUNE);
        diary.assert_restores();
    }
    assert_eq!(diary.assert_sound(), 2);
}
