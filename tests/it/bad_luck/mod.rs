//! Bad luck between the program and its repository, on real servers: each run ends in success or a clear error, and what
//! was committed restores.

mod hosts;
mod refusals;
mod requests;
mod uploads;

use std::collections::BTreeMap;
use std::fs;

use crate::picture::{self, Picture};
use crate::servers::proxy::Proxy;
use crate::servers::{s3, world_with_s3};
use crate::world::{Dice, Ran, World};

/// Prunes at once what nobody needs.
const PRUNE: [&str; 7] = ["prune", "--keep-last", "2", "--grace", "0s", "--max-unused", "0%"];

/// A user with a repository somewhere, whose directory `data` changes, and what it looked like in each snapshot.
struct Diary {
    world: World,
    dice: Dice,
    states: BTreeMap<String, Picture>,
}

impl Diary {
    /// Makes the repository.
    fn new(world: World) -> Self {
        world.ok(["init"]);
        Self { world, dice: Dice::new(9), states: BTreeMap::new() }
    }

    /// One in a new bucket of the shared server, by way of a proxy.
    fn behind_proxy() -> (Self, Proxy) {
        let server = s3::shared();
        let proxy = Proxy::to(server.port());
        let bucket = server.new_bucket();
        (Self::new(world_with_s3(&proxy.url(), &bucket)), proxy)
    }

    /// Changes something and takes a snapshot, which may fail.
    fn create(&mut self) -> Ran {
        self.change();
        self.create_again()
    }

    /// Takes another snapshot of the same.
    fn create_again(&mut self) -> Ran {
        let tag = format!("night {}", self.states.len());
        self.states.insert(tag.clone(), picture::of(&self.world.work("data")));
        self.world.run(["create", "data", "--tag", &tag, "--json", "-q"])
    }

    fn change(&mut self) {
        for _ in 0..3 {
            let (name, len) = (self.dice.below(8), self.dice.below(30_000));
            let bytes = self.dice.bytes(usize::try_from(len).unwrap());
            self.world.write(format!("data/{name}"), bytes);
        }
    }

    /// Fails unless each snapshot is what was there when it was taken. Returns how many there are.
    fn assert_restores(&self) -> usize {
        let all = self.world.list();
        for snapshot in &all {
            let restored = self.world.restore(snapshot["id"].as_str().unwrap(), "restored");
            let tag = snapshot["tags"][0].as_str().unwrap();
            picture::assert_same(&picture::of(&restored.join("data")), &self.states[tag]);
            fs::remove_dir_all(restored).unwrap();
        }
        all.len()
    }

    /// The same, and that nothing is damaged.
    fn assert_sound(&self) -> usize {
        self.world.ok(["check", "--read-data"]);
        self.assert_restores()
    }
}
