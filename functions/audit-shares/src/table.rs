//! The report for people: plain text, for the notification.

use std::{collections::BTreeSet, fmt::Write};

use crate::{
    grantee::Grantee,
    keys::Way,
    public_access::BlockPublicAccess,
    report::{GivenBy, ImageShares, Report, Share, Status},
};

/// Room for it, in bytes: with the report it is the answer of one function, which may take 262,144.
const MOST_BYTES: usize = 90_000;

const HEADINGS: [&str; 8] = ["IMAGE", "NAME", "SHARED WITH", "LAUNCH", "KEYS", "SNAPSHOTS", "PRINCIPALS", "COPIES"];

/// Room for the line that says how many rows have no room.
const LAST_LINE: usize = 40;

/// The longest name or list of principals of a row, in characters.
const LONGEST: usize = 40;

/// One row for each image and whoever can use it, then the findings, which all have their place before any row has.
pub(crate) fn table(report: &Report) -> String {
    let head = headline(report);
    let rest = [
        section("FINDINGS", report.findings.iter().map(|finding| format!("{:?}: {}", finding.kind, finding.message))),
        section(
            "KEYS WITHOUT THE TAG ami-share:shareable=true, WHICH OnlyTaggedKeys ASKS FOR",
            report.untagged_keys.iter().map(ToString::to_string),
        ),
        section("NOT LOOKED AT", report.not_looked_at.iter().cloned()),
        section("LEFT OUT", report.cut.iter().cloned()),
    ]
    .concat();
    let rows: Vec<Row> = report.images.iter().flat_map(rows).collect();
    let rows = aligned(&rows, MOST_BYTES.saturating_sub(head.len() + rest.len()));
    format!("{head}\n{rows}{rest}")
}

fn headline(report: &Report) -> String {
    let summary = &report.summary;
    let findings: Vec<String> = summary.findings.iter().map(|(kind, count)| format!("{count} {kind:?}")).collect();
    let findings = match report.status {
        Status::Clean => "nothing wrong".to_owned(),
        Status::Findings => findings.join(", "),
    };
    format!(
        "ami-share looked at {} image(s) and {} key(s) of account {} in {}, and found {findings}.\n\
         Images that are shared: {}. Pairs of an image and whom it is shared with: {}.\n\
         Block public access: of images {}, of snapshots {}.\n",
        summary.images,
        summary.keys,
        report.source.account_id,
        report.source.region,
        summary.shared_images,
        summary.shares,
        block(report.public_images.as_ref()),
        block(report.public_snapshots.as_ref()),
    )
}

fn block(setting: Option<&BlockPublicAccess>) -> String {
    setting.map_or_else(|| "not known".to_owned(), ToString::to_string)
}

fn section(heading: &str, lines: impl Iterator<Item = String>) -> String {
    let lines: String = lines.map(|line| format!("  {line}\n")).collect();
    if lines.is_empty() { lines } else { format!("\n{heading}\n{lines}") }
}

type Row = [String; HEADINGS.len()];

fn rows(image: &ImageShares) -> Vec<Row> {
    let row = |with: &Grantee, share: &Share| {
        let principals: Vec<&str> = share.principals.iter().map(String::as_str).collect();
        [
            image.image_id.to_string(),
            shortened(&image.name),
            with.to_string(),
            share.launch_permission.map_or("-", given_by).to_owned(),
            key_access(image, with, share),
            snapshots(image, share),
            if principals.is_empty() { "-".to_owned() } else { shortened(&principals.join(", ")) },
            if share.copied_by.is_empty() { "-".to_owned() } else { share.copied_by.len().to_string() },
        ]
    };
    let shares = image.shares.iter();
    shares.flat_map(|shared| shared.accounts.iter().map(move |with| row(with, &shared.share))).collect()
}

fn given_by(by: GivenBy) -> &'static str {
    match by {
        GivenBy::AmiShare => "ami-share",
        GivenBy::SomebodyElse => "others",
    }
}

/// `2 of 2: statements`, `1 of 1: grant, and volumes without a key`
fn key_access(image: &ImageShares, with: &Grantee, share: &Share) -> String {
    let unencrypted = image.unencrypted.is_some();
    if image.keys == 0 {
        return if unencrypted { "none needed: not encrypted" } else { "none needed" }.to_owned();
    }
    let rest = if unencrypted { ", and volumes without a key" } else { "" };
    if with.account().is_none() {
        return format!("?{rest}");
    }
    let usable = share.key_access.iter().filter(|key| key.ways.iter().any(|way| way.is_access())).count();
    let ways: BTreeSet<Way> = share.key_access.iter().flat_map(|key| key.ways.iter().copied()).collect();
    let ways: Vec<&str> = ways.into_iter().map(way).collect();
    let ways = if ways.is_empty() { String::new() } else { format!(": {}", ways.join(", ")) };
    format!("{usable} of {}{ways}{rest}", image.keys)
}

fn way(way: Way) -> &'static str {
    match way {
        Way::AmiShareStatements => "statements",
        Way::OneAmiShareStatement => "one statement",
        Way::AmiShareGrant => "grant",
        Way::OthersStatement => "others' statement",
        Way::OthersGrant => "others' grant",
        Way::StatementForEverybody => "statement for everybody",
        Way::NotRead => "not read",
    }
}

/// `3 of 3: ami-share`
fn snapshots(image: &ImageShares, share: &Share) -> String {
    let permitted: usize = share.snapshot_permissions.values().sum();
    if permitted == 0 {
        return "-".to_owned();
    }
    let by: Vec<&str> = share.snapshot_permissions.keys().copied().map(given_by).collect();
    format!("{permitted} of {}: {}", image.snapshots, by.join(", "))
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    text.chars().take(LONGEST - 3).chain("...".chars()).collect()
}

/// Left-aligned columns, of as many rows as there is room for.
fn aligned(rows: &[Row], room: usize) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let widths: [usize; HEADINGS.len()] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).chain([HEADINGS[column].len()]).max().unwrap_or_default()
    });
    let line = |cells: [&str; HEADINGS.len()]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(HEADINGS);
    for (index, row) in rows.iter().enumerate() {
        let line = line(row.each_ref().map(String::as_str));
        if text.len() + line.len() + LAST_LINE > room {
            let _ = writeln!(text, "... and {} more", rows.len() - index);
            break;
        }
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ami_share_core::{
        ids::{ImageId, Region},
        request::AuditRequest,
        share::Source,
    };

    use super::*;
    use crate::{
        Output,
        report::{Finding, Kind, SharedWith, written},
    };

    fn account(number: usize) -> Grantee {
        Grantee::try_from(format!("{number:012}")).unwrap()
    }

    fn image(number: usize, name: &str, targets: usize) -> ImageShares {
        let share = Share {
            launch_permission: Some(GivenBy::AmiShare),
            key_access: vec![],
            snapshot_permissions: BTreeMap::from([(GivenBy::SomebodyElse, 1)]),
            principals: BTreeSet::from(["app-deployer".to_owned()]),
            copied_by: BTreeSet::new(),
        };
        ImageShares {
            image_id: ImageId::parse(format!("ami-{number:017x}")).unwrap(),
            name: name.to_owned(),
            keys: 0,
            snapshots: 2,
            unencrypted: None,
            shares: vec![SharedWith { accounts: (0..targets).map(account).collect(), share }],
        }
    }

    fn report() -> Report {
        let source = Source {
            account_id: ami_share_core::ids::AccountId::parse("111111111111").unwrap(),
            region: Region::parse("eu-west-1").unwrap(),
        };
        Report::new(&AuditRequest { image_id: None, source })
    }

    #[test]
    fn columns_are_aligned_and_long_names_cut() {
        let mut report = report();
        report.add([image(1, "web", 1), image(2, &"é".repeat(50), 1)]);
        let table = table(&report);
        let lines: Vec<&str> = table.lines().skip(4).collect();
        let column = |line: &str, text: &str| line.split(text).next().map(|before| before.chars().count());
        let places: Vec<_> =
            [(0, "LAUNCH"), (1, "ami-share"), (2, "ami-share")].map(|(line, text)| column(lines[line], text)).into();
        assert!(places.iter().all(|place| *place == places[0]), "{table}");
        assert!(lines[2].contains(&format!("{}...", "é".repeat(37))), "{table}");
        assert!(lines[1].ends_with("none needed  1 of 2: others  app-deployer  -"), "{table}");
    }

    #[test]
    fn volumes_without_a_key_are_told_beside_the_keys() {
        let mut report = report();
        let plain = |number: usize, keys: usize| ImageShares {
            keys,
            unencrypted: ami_share_core::words::unencrypted(&["/dev/xvda".to_owned()]),
            ..image(number, "web", 1)
        };
        report.add([plain(1, 0), plain(2, 1)]);
        let table = table(&report);
        assert!(table.contains("none needed: not encrypted"), "{table}");
        assert!(table.contains("0 of 1, and volumes without a key"), "{table}");
    }

    /// What a function answers, and a notification, may take 262,144 bytes, and the call has some of its own around it.
    #[test]
    fn the_largest_report_and_its_table_fit_into_one_answer() {
        let mut report = report();
        let finding = |number: usize| {
            let accounts = (0..number % 200).map(account).collect();
            Finding::new(Kind::NotOnAllowList, accounts, |accounts| format!("{accounts} \"may\" use {number}"))
        };
        report.find((0..5_000).map(finding));
        report.add((0..1_000).map(|number| image(number, &"\"é\"".repeat(40), number % 60)));
        (0..50).for_each(|number| report.not_looked_at(format!("{number}: {}", "x".repeat(300))));
        report.finish();
        assert_eq!(report.cut.len(), 2);
        let table = table(&report);
        assert!(table.len() <= MOST_BYTES && table.contains("... and "), "{}", table.len());
        let output = Output { progress: None, report: Some(report), table: Some(table) };
        assert!(written(&output) < 250_000, "{}", written(&output));
    }
}
