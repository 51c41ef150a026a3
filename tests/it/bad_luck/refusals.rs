//! What waiting does not help: told at once, with its cause and the next step. And credentials that may do little.

use std::collections::HashSet;
use std::fs;
use std::sync::Mutex;

use super::{Diary, PRUNE};
use crate::servers::proxy::{Fate, Proxy};
use crate::servers::s3::{self, OWNER};
use crate::servers::script::free_port;
use crate::servers::sshd::{self, Sshd};
use crate::servers::{PREFIX, use_s3, world_with_s3, world_with_sftp};
use crate::world::World;

#[test]
fn of_s3() {
    let server = s3::shared();
    let bucket = server.new_bucket();
    let mut world = world_with_s3(&server.url(), &bucket);
    world.ok(["init"]);
    use_s3(&mut world, &server.url(), "no-such-bucket", OWNER);
    world.run(["list"]).expect(1).names(["no such bucket", "no-such-bucket"]);
    use_s3(&mut world, &server.url(), &bucket, ("NOBODY", "x"));
    world.run(["list"]).expect(1).names(["AWS_ACCESS_KEY_ID", &bucket]);
    use_s3(&mut world, &server.url(), &bucket, (OWNER.0, "wrong"));
    world.run(["list"]).expect(1).names(["AWS_SECRET_ACCESS_KEY", &bucket]);
    let port = free_port();
    use_s3(&mut world, &format!("http://127.0.0.1:{port}"), &bucket, OWNER);
    world.run(["list"]).expect(1).names(["no connection", "endpoint"]);
    use_s3(&mut world, "http://no-such-host.invalid", &bucket, OWNER);
    world.run(["list"]).expect(1).names(["endpoint", &bucket]);
    use_s3(&mut world, &server.url(), &bucket, OWNER);
    world.set("SNAPSHOT_REPO", format!("s3://{bucket}/elsewhere"));
    world.run(["list"]).expect(10).names(["elsewhere"]);
    world.unset("AWS_SECRET_ACCESS_KEY");
    world.run(["list"]).expect(1).names(["AWS_SECRET_ACCESS_KEY"]);
}

#[test]
fn of_sftp() {
    let server = Sshd::start();
    let mut world = world_with_sftp(&server, server.port());
    world.ok(["init"]);
    let repo = world.at("repo");
    world.set("SNAPSHOT_REPO", sshd::url(free_port(), &repo));
    world.run(["list"]).expect(1).names(["nothing listens there", "127.0.0.1"]);
    world.set("SNAPSHOT_REPO", format!("sftp://no-such-host.invalid{}", repo.display()));
    world.run(["list"]).expect(1).names(["no-such-host.invalid", "name is not known"]);
    world.set("SNAPSHOT_REPO", format!("sftp://no-such-user@127.0.0.1:{}{}", server.port(), repo.display()));
    world.run(["list"]).expect(1).names(["none of your keys", "authorized_keys"]);
    world.set("SNAPSHOT_REPO", sshd::url(server.port(), &world.at("elsewhere")));
    world.run(["list"]).expect(10).names(["elsewhere"]);
    assert!(!world.at("elsewhere").exists());
    world.set("SNAPSHOT_REPO", sshd::url(server.port(), &repo));
    world.ok(["list"]);
    let known = fs::read(server.known_hosts()).unwrap();
    fs::write(server.known_hosts(), "").unwrap();
    world.run(["list"]).expect(1).names(["key is not known", "ssh -p"]);
    fs::write(server.known_hosts(), known).unwrap();
    server.change_host_key();
    world.run(["list"]).expect(1).names(["another key than the one known", "ssh-keygen -R"]);
    world.set("SNAPSHOT_SSH_COMMAND", world.at("no-such-program"));
    world.run(["list"]).expect(1).names(["ssh"]);
}

/// From some request on, the credentials are no longer valid.
#[test]
fn credentials_expire() {
    let (mut diary, proxy) = Diary::behind_proxy();
    diary.create().expect(0);
    for valid in [1, 4, 6, 8] {
        proxy.set_fate(move |request| match request.number {
            n if n >= valid => Fate::Error(400, "ExpiredToken"),
            _ => Fate::Good,
        });
        diary.create().expect(1).names(["credentials are no longer valid", "run the command again"]);
        diary.world.run(PRUNE).expect(1).names(["credentials are no longer valid"]);
        proxy.be_good();
        diary.create().expect(0);
    }
    diary.assert_sound();
    // A key that the service takes away.
    let server = s3::shared();
    server.admin("user create --uid=guest --display-name=guest --access-key=GUEST --secret-key=guest");
    let bucket = server.new_bucket();
    let mut world = World::bare();
    use_s3(&mut world, &server.url(), &bucket, ("GUEST", "guest"));
    world.set("SNAPSHOT_KEY_FILE", world.at("key"));
    world.run(["init"]).expect(1).names(["access is denied"]);
    server.admin("user rm --uid=guest");
    world.run(["init"]).expect(1).names(["AWS_ACCESS_KEY_ID"]);
}

/// Whoever may put, get and list, and neither delete nor overwrite, can take snapshots for ever.
#[test]
fn deleting_and_overwriting() {
    let server = s3::shared();
    server.admin("user create --uid=host --display-name=host --access-key=HOST --secret-key=host");
    let bucket = server.new_bucket();
    // What a user stored is that user's in this service, and not the bucket's owner's.
    let statement = |user: &str, actions: &str| {
        format!(
            r#"{{"Effect": "Allow", "Principal": {{"AWS": ["arn:aws:iam:::user/{user}"]}}, "Action": [{actions}],
            "Resource": ["arn:aws:s3:::{bucket}", "arn:aws:s3:::{bucket}/*"]}}"#
        )
    };
    let host = statement("host", r#""s3:PutObject", "s3:GetObject", "s3:ListBucket""#);
    let owner = statement("owner", r#""s3:*""#);
    let policy = format!(r#"{{"Version": "2012-10-17", "Statement": [{host}, {owner}]}}"#);
    server.set_policy(&bucket, &policy);
    // The policy does not know overwriting; the proxy does.
    let proxy = Proxy::to(server.port());
    let mut diary = Diary::new(world_with_s3(&proxy.url(), &bucket));
    let known: HashSet<_> = server.objects(&bucket).into_iter().map(|(key, _)| format!("/{bucket}/{key}")).collect();
    let known = Mutex::new(known);
    proxy.set_fate(move |request| match request.is_put() && !known.lock().unwrap().insert(request.path().to_owned()) {
        true => Fate::Error(403, "AccessDenied"),
        false => Fate::Good,
    });
    use_s3(&mut diary.world, &proxy.url(), &bucket, ("HOST", "host"));
    for _ in 0..3 {
        let ran = diary.create().expect(0);
        assert_eq!(ran.stderr, "", "a host that may do no more than it needs is told nothing");
    }
    // What must delete says so.
    diary.world.run(PRUNE).expect(1).names(["access is denied"]);
    assert_eq!(diary.assert_sound(), 3);
    proxy.be_good();
    use_s3(&mut diary.world, &proxy.url(), &bucket, OWNER);
    diary.world.ok(PRUNE);
    diary.world.ok(PRUNE);
    assert_eq!(diary.assert_sound(), 2);
    let sessions = server.objects(&bucket).into_iter().filter(|(key, _)| key.starts_with(&format!("{PREFIX}/live/")));
    assert_eq!(sessions.collect::<Vec<_>>(), [], "ended sessions are cleared away by who may");
}
