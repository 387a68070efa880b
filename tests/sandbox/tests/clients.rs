//! Clients that nobody here wrote: boto3 and the AWS CLI seed two accounts and
//! share an encrypted image by hand.

use crate::accounts::{A, sandbox};
use crate::checkout::checkout;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The virtual environment with boto3 and the AWS CLI, which `make setup` makes.
fn tools() -> PathBuf {
    checkout().join(".venv/bin")
}

async fn run(program: &Path, script: &str) {
    let sandbox = sandbox().await;
    let script = checkout().join("tests/sandbox/clients").join(script);
    let path = format!("{}:{}", tools().display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program)
        .arg(script)
        .arg(sandbox.endpoint())
        .env_clear()
        .env("PATH", path)
        .env("HOME", "/nonexistent")
        .output()
        .expect("the program is there");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
    assert!(said(&output.stdout).contains("with everything: running"));
    assert!(sandbox.world().journal.entries().iter().any(|entry| entry.account == A));
}

#[tokio::test]
async fn boto3_shares_an_image() {
    run(&tools().join("python"), "seed_and_share.py").await;
}

#[tokio::test]
async fn the_aws_cli_shares_an_image() {
    run(Path::new("bash"), "seed_and_share.sh").await;
}
