//! The state machines and functions in worlds, with faults and in orders that nobody thought of, on the machine of
//! tests/machine.
//!
//! Each property has a seed of its own, so that every run tries the same cases; `AMI_SHARE_CASES=10` tries ten times as
//! many, and `AMI_SHARE_CASES=0.1` a tenth. A case that fails is made as small as it can be, and its seed is kept in
//! `proptest-regressions/` beside this file, to be tried first from then on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

mod agreement;
mod at_once;
mod check;
mod counted;
mod crowd;
mod default_key;
mod deployed;
mod faulty;
mod granted;
mod locked;
mod needs;
mod planned;
mod proof;
mod reach;
mod request;
mod revoked;
mod rounds;
mod single;
mod taken_over;
mod trouble;
mod versions;
mod world;
mod worst;

use std::{cell::Cell, env, fmt::Debug, time::Instant};

use ami_share_tests::checkout::checkout;
use proptest::{
    strategy::Strategy,
    test_runner::{Config, FileFailurePersistence, RngSeed, TestCaseError, TestRunner},
};

/// What the cases of a property came to.
#[derive(Debug, Default)]
struct Tally {
    executions: Cell<u64>,
    succeeded: Cell<u64>,
    calls: Cell<u64>,
}

fn add(cell: &Cell<u64>, more: u64) {
    cell.set(cell.get() + more);
}

/// Holds `property` to so many cases of `strategy`, and prints how much that was; the seeds of its failures are kept
/// in `file`.
fn hold<P: Debug>(
    name: &'static str,
    (cases, seed): (u32, u64),
    file: &str,
    strategy: impl Strategy<Value = P>,
    property: impl Fn(&Tally, P) -> Result<(), String>,
) {
    let regressions = checkout().join(format!("tests/tests/properties/proptest-regressions/{file}.txt"));
    let regressions = regressions.to_string_lossy().into_owned().leak();
    let times: f64 = env::var("AMI_SHARE_CASES").ok().map_or(1.0, |times| times.parse().unwrap());
    let config = Config {
        cases: (f64::from(cases) * times).ceil() as u32,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(regressions))),
        max_shrink_iters: 100,
        ..Config::default()
    };
    let (tally, worlds, started) = (Tally::default(), Cell::new(0), Instant::now());
    let result = TestRunner::new(config).run(&strategy, |plan| {
        add(&worlds, 1);
        property(&tally, plan).map_err(TestCaseError::fail)
    });
    let Tally { executions, succeeded, calls } = tally;
    println!(
        "{name}: {} worlds, {} executions ({} succeeded), {} calls, in {:?}",
        worlds.get(),
        executions.get(),
        succeeded.get(),
        calls.get(),
        started.elapsed(),
    );
    if let Err(error) = result {
        panic!("{name}: {error}");
    }
}
