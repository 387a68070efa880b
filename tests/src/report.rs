//! What an execution did: as tables for a terminal, and as JSON.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal},
};

use ami_share_sandbox::journal::{Entry, Outcome};
use serde_json::{Value, json};

use crate::{HUB, SOURCE, TARGET, execution::Ended};

/// One execution, and everything the sandbox saw of it.
#[derive(Debug)]
pub struct Run {
    pub name: String,
    pub title: String,
    pub request: Value,
    pub ended: Ended,
    pub journal: Vec<Entry>,
    /// What is not as it should be.
    pub problems: Vec<String>,
}

/// How many calls were made in one account.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Calls {
    pub reads: usize,
    pub changes: usize,
    pub refused: usize,
}

impl Run {
    /// The calls that changed something, what a hook did included.
    pub fn changes(&self) -> impl Iterator<Item = &Entry> {
        self.journal.iter().filter(|entry| entry.changed && !by_ec2(entry))
    }

    /// Calls by account; what EC2 did with keys in a caller's name is left out.
    pub fn calls(&self) -> BTreeMap<&str, Calls> {
        let mut calls: BTreeMap<&str, Calls> = BTreeMap::new();
        for entry in self.journal.iter().filter(|entry| entry.via.is_none()) {
            let account = calls.entry(&entry.account).or_default();
            match entry.outcome {
                Outcome::Denied => account.refused += 1,
                _ if entry.changed => account.changes += 1,
                _ => account.reads += 1,
            }
        }
        calls
    }

    /// The report of the target, which is the execution's output if it succeeded.
    pub fn target(&self) -> &Value {
        static NOTHING: Value = Value::Null;
        self.ended.output.as_ref().map_or(&NOTHING, |output| &output["targets"][0])
    }

    pub fn json(&self) -> Value {
        let calls: BTreeMap<_, _> = self
            .calls()
            .into_iter()
            .map(|(account, calls)| {
                (account, json!({ "reads": calls.reads, "changes": calls.changes, "refused": calls.refused }))
            })
            .collect();
        let states: Vec<_> = self
            .ended
            .states
            .iter()
            .map(|entered| json!({ "state": entered.state, "afterMs": milliseconds(entered.after) }))
            .collect();
        json!({
            "name": self.name,
            "title": self.title,
            "request": self.request,
            "executionArn": self.ended.arn,
            "status": self.ended.status.as_str(),
            "durationMs": milliseconds(self.ended.duration),
            "states": states,
            "output": self.ended.output,
            "error": self.ended.error,
            "cause": self.ended.cause,
            "callsByAccount": calls,
            "changes": self.changes().collect::<Vec<_>>(),
            "journal": self.journal,
            "asExpected": self.problems.is_empty(),
            "problems": self.problems,
        })
    }

    /// The tables; `names` says what a key's ARN stands for.
    pub fn tables(&self, names: &BTreeMap<String, String>) -> String {
        let mut text = String::new();
        let rows = self.changes().map(|entry| {
            let resources: Vec<String> = entry.resources.iter().map(|resource| short(resource, names)).collect();
            let who = if entry.via.is_some() { "the demo itself" } else { short_role(&entry.principal) };
            [account(&entry.account), who.to_owned(), entry.action.clone(), resources.join(", ")]
        });
        text.push_str(&table(["CHANGED IN", "BY", "CALL", "ON"], rows));
        text.push('\n');
        let rows = self.calls().into_iter().map(|(id, calls)| {
            [account(id), calls.reads.to_string(), calls.changes.to_string(), calls.refused.to_string()]
        });
        text.push_str(&table(["CALLS IN", "READS", "CHANGES", "REFUSED"], rows));
        let target = self.target();
        if let Some(instance) = target["instanceId"].as_str() {
            let fate = if target["instanceStays"] == true { "kept" } else { "then terminated" };
            let image = target["imageId"].as_str().unwrap_or_default();
            let _ = writeln!(text, "\n  Instance {instance} of {image} ran in {}, {fate}.\n", account(TARGET));
            let volumes = target["volumes"].as_array().into_iter().flatten().map(|volume| {
                let field = |name: &str| volume[name].as_str().unwrap_or_default();
                [field("deviceName").to_owned(), field("volumeId").to_owned(), short(field("keyArn"), names)]
            });
            text.push_str(&table(["DEVICE", "VOLUME", "ENCRYPTED WITH"], volumes));
        }
        if let Some(error) = &self.ended.error {
            let _ = writeln!(text, "\n  {error}");
            for line in wrapped(self.ended.cause.as_deref().unwrap_or_default(), 100) {
                let _ = writeln!(text, "    {line}");
            }
        }
        text
    }
}

/// What EC2 did with a key in the caller's name is not a call of the caller's.
fn by_ec2(entry: &Entry) -> bool {
    entry.via.as_deref() == Some("ec2")
}

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn account(id: &str) -> String {
    match id {
        SOURCE => format!("{id} source"),
        TARGET => format!("{id} target"),
        HUB => format!("{id} hub"),
        _ => id.to_owned(),
    }
}

fn short_role(principal: &str) -> &str {
    principal.rsplit('/').next().unwrap_or(principal)
}

fn short(arn: &str, names: &BTreeMap<String, String>) -> String {
    match names.get(arn) {
        Some(name) => name.clone(),
        None => arn.splitn(6, ':').nth(5).unwrap_or(arn).to_owned(),
    }
}

/// Left-aligned columns under their headings, indented by two.
fn table<const N: usize>(headings: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = rows.collect();
    let widths: Vec<usize> = (0..N)
        .map(|column| {
            rows.iter().map(|row| row[column].chars().count()).chain([headings[column].len()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: [&str; N]| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("  {}\n", padded.join("  ").trim_end())
    };
    let mut text = bold(line(headings).trim_end());
    text.push('\n');
    for row in &rows {
        text.push_str(&line(row.each_ref().map(String::as_str)));
    }
    if rows.is_empty() {
        text.push_str("  (none)\n");
    }
    text
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// In bold, if it is shown on a terminal.
pub fn bold(text: &str) -> String {
    if io::stdout().is_terminal() { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "bc".to_owned()], ["long cell".to_owned(), "d".to_owned()]];
        assert_eq!(table(["X", "Y"], rows.into_iter()), "  X          Y\n  a          bc\n  long cell  d\n");
    }

    #[test]
    fn long_text_is_wrapped_between_words() {
        assert_eq!(wrapped("one two three", 8), ["one two", "three"]);
    }
}
