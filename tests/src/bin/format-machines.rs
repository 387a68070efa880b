//! `make format`: writes every definition in statemachine/ in the repository's format.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use std::fs;

use ami_share_tests::{Result, asl_format};

fn main() -> Result<()> {
    for path in asl_format::definitions()? {
        let definition = fs::read_to_string(&path)?;
        let formatted = asl_format::format(&definition).map_err(|error| format!("{}: {error}", path.display()))?;
        if formatted != definition {
            fs::write(&path, formatted)?;
            println!("{}", path.display());
        }
    }
    Ok(())
}
