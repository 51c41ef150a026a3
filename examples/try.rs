//! Takes one snapshot through the library, with times: for profiling without the command line.

#![allow(clippy::unwrap_used)]

use snapshot::{
    backend::Local, crypto::KdfCost, format::keyslot::Unlock, job::create, repo::Repository, report::Reporter,
};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    if a[1] == "hold-database" {
        std::process::exit(snapshot::source::hold::hold_database(a[2].as_ref()).into());
    }
    let t = Instant::now();
    let r = Reporter::silent();
    let u = Unlock::KeyFile(vec![1; 32]);
    let b = Arc::new(Local::new(a[1].as_ref()).unwrap());
    let repo = Arc::new(if Repository::exists(&*b).unwrap() {
        Repository::open(b, &u, "key", &r).unwrap()
    } else {
        Repository::init(b, &u, KdfCost::default(), "x").unwrap()
    });
    eprintln!("open {:?}", t.elapsed());
    let o = create::Options {
        paths: a[2..].iter().map(PathBuf::from).collect(),
        stdin: None,
        host: None,
        source: None,
        tags: vec![],
        time: None,
        excludes: vec![],
        exclude_files: vec![],
        exclude_caches: false,
        one_file_system: false,
        dry_run: false,
        level: 3,
        spool_dir: "/tmp/spool".into(),
        max_lock: Duration::from_secs(30),
        helper: std::env::current_exe().unwrap(),
    };
    let s = create::run(&repo, &o, &r);
    for p in r.problems() {
        eprintln!("{p:?}");
    }
    match s {
        Ok(s) => eprintln!("{:?} gen {} {:?} total {:?}", s.id, s.snapshot.generation, s.snapshot.counts, t.elapsed()),
        Err(e) => eprintln!("ERR {e}"),
    }
}
