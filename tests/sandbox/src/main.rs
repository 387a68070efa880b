//! Runs a sandbox until it is killed.
//!
//! `ami-share-sandbox [--port N] [--upstream-sts URL] [--settings JSON]`

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use ami_share_sandbox::{Sandbox, Settings};
use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let settings = match parse(std::env::args().skip(1)) {
        Ok(settings) => settings,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    match Sandbox::start(settings).await {
        Ok(sandbox) => {
            println!("{}", sandbox.endpoint());
            std::future::pending::<()>().await;
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cannot listen: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `--settings` takes the same JSON as `POST /_sandbox/settings`; the other
/// options go over it.
fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Settings, String> {
    let mut settings = Settings::default();
    let mut port = None;
    let mut upstream_sts = None;
    while let Some(option) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--port" => port = Some(value.parse().map_err(|_| "--port needs a number")?),
            "--upstream-sts" => upstream_sts = Some(value),
            "--settings" => {
                settings = serde_json::from_str(&value).map_err(|error| error.to_string())?;
            }
            _ => return Err(format!("unknown option {option}")),
        }
    }
    settings.port = port.unwrap_or(settings.port);
    settings.upstream_sts = upstream_sts.or(settings.upstream_sts);
    Ok(settings)
}
