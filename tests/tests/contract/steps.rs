//! Every function with the actions it names.

use ami_share_core::hub::Actions;

pub(crate) use ami_share_machine::steps::steps;

/// Every function of the hub with its actions: the steps, and the one that starts them.
pub(crate) fn functions() -> Vec<(&'static str, Actions)> {
    let steps = steps().into_iter().map(|step| (step.state, step.actions));
    steps.chain([("StartShare", start_share::ACTIONS)]).collect()
}
