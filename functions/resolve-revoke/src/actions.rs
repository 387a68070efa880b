//! What is called in other accounts, for the policies of the sessions there.

use ami_share_core::hub::Actions;

use crate::{source, target};

pub const ACTIONS: Actions = Actions {
    source_reader: &[
        source::DESCRIBE_IMAGES,
        source::DESCRIBE_SNAPSHOTS,
        source::DESCRIBE_IMAGE_ATTRIBUTE,
        source::GET_KEY_POLICY,
        source::LIST_GRANTS,
    ],
    target: &[target::LIST_ENTITIES],
    ..Actions::NONE
};
