//! `make pictures`: draws every state machine as its definition is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use std::fs;

use ami_share_tests::{Result, pictures};

fn main() -> Result<()> {
    for (path, picture) in pictures::pictures()? {
        if fs::read_to_string(&path).is_ok_and(|before| before == picture) {
            continue;
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, picture)?;
        println!("{}", path.display());
    }
    Ok(())
}
