//! What tells long texts apart.

use sha2::{Digest, Sha256};

/// The SHA-256 digest of `text`: 64 lower-case hexadecimal digits.
pub fn sha256(text: impl AsRef<[u8]>) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}
