//! Whether the state of a key lets it be used ("Key states of AWS KMS keys", AWS KMS developer guide).

use aws_sdk_kms::types::KeyState;

/// Why a key in that state cannot be used, and what to do: a clause without its subject. Nothing where it can.
pub fn problem(state: &KeyState) -> Option<String> {
    let what_to_do = match state {
        // The primary Region of a multi-Region key changes: it is used as before.
        KeyState::Enabled | KeyState::Updating => return None,
        KeyState::Disabled => "enable it (kms:EnableKey)",
        KeyState::PendingDeletion => "cancel its deletion (kms:CancelKeyDeletion) and enable it (kms:EnableKey)",
        KeyState::PendingReplicaDeletion => {
            "it is deleted as soon as its replica keys are; cancel its deletion (kms:CancelKeyDeletion) and enable it \
             (kms:EnableKey)"
        }
        KeyState::PendingImport => "it has no key material, or that has expired; import it (kms:ImportKeyMaterial)",
        KeyState::Unavailable => "its custom key store is not connected; connect it (kms:ConnectCustomKeyStore)",
        KeyState::Creating => "it is being made; start again in a minute",
        _ => "ask KMS about that state (kms:DescribeKey)",
    };
    Some(format!("it is {state}; {what_to_do}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_passes_or_gets_advice_of_its_own() {
        let usable: Vec<&str> =
            KeyState::values().iter().copied().filter(|state| problem(&KeyState::from(*state)).is_none()).collect();
        assert_eq!(usable, ["Enabled", "Updating"]);
        for (state, advice) in [
            ("Disabled", "kms:EnableKey"),
            ("PendingDeletion", "kms:CancelKeyDeletion"),
            ("PendingReplicaDeletion", "replica keys"),
            ("PendingImport", "kms:ImportKeyMaterial"),
            ("Unavailable", "kms:ConnectCustomKeyStore"),
            ("Creating", "start again"),
            ("Unheard", "kms:DescribeKey"),
        ] {
            let said = problem(&KeyState::from(state)).unwrap();
            assert!(said.contains(state) && said.contains(advice), "{said}");
            assert!(
                state == "Disabled" || !said.contains("enable it") || said.contains("kms:CancelKeyDeletion"),
                "{said}"
            );
        }
    }
}
