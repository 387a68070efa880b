//! The documents: that they are short, that what they name is there, and that the requests in them are requests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ami_share_core::{
    ids::{AccountId, Region},
    request::{AuditRequest, Request},
    revoke::RevokeRequest,
    share::Source,
};
use ami_share_tests::engine::checkout;
use serde_json::Value;

use crate::{Set, template, text};

const MOST_LINES_OF_README: usize = 149;
const MOST_WORDS: usize = 130;
const MOST_LINES: usize = 6;
const WIDEST_CODE: usize = 104;

/// A page, by its path in the checkout.
struct Page {
    path: String,
    blocks: Vec<Block>,
}

#[derive(Debug)]
enum Block {
    /// Its level and its text.
    Heading(usize, String),
    /// The rows, with the heading and the line below it.
    Table(Vec<String>),
    /// A paragraph, or an item of a list.
    Paragraph(Vec<String>),
    /// The language and the text.
    Code(String, String),
}

impl Page {
    fn read(path: &str) -> Self {
        let page = text(path);
        let mut blocks = vec![];
        let mut lines = page.lines().peekable();
        while let Some(line) = lines.next() {
            let mut more = |goes_on: fn(&str) -> bool| {
                let mut block = vec![line.to_owned()];
                while let Some(line) = lines.next_if(|line| goes_on(line)) {
                    block.push(line.to_owned());
                }
                block
            };
            if let Some(language) = line.strip_prefix("```") {
                let code = more(|line| line != "```")[1..].join("\n");
                blocks.push(Block::Code(language.to_owned(), code));
                lines.next();
            } else if line.starts_with('#') {
                let level = line.bytes().take_while(|byte| *byte == b'#').count();
                blocks.push(Block::Heading(level, line[level..].trim().to_owned()));
            } else if line.starts_with('|') {
                blocks.push(Block::Table(more(|line| line.starts_with('|'))));
            } else if !line.is_empty() && !line.starts_with("<!--") {
                blocks.push(Block::Paragraph(more(is_more_of_a_paragraph)));
            }
        }
        Self { path: path.to_owned(), blocks }
    }

    fn headings(&self) -> Vec<(usize, &str)> {
        let headings = self.blocks.iter().filter_map(|block| match block {
            Block::Heading(level, text) => Some((*level, text.as_str())),
            _ => None,
        });
        headings.collect()
    }

    fn tables(&self) -> Vec<usize> {
        let tables = self.blocks.iter().filter_map(|block| match block {
            Block::Table(rows) => Some(rows.len()),
            _ => None,
        });
        tables.collect()
    }

    fn code(&self) -> impl Iterator<Item = (&str, &str)> {
        self.blocks.iter().filter_map(|block| match block {
            Block::Code(language, code) => Some((language.as_str(), code.as_str())),
            _ => None,
        })
    }

    /// Everything but code.
    fn prose(&self) -> String {
        let prose = self.blocks.iter().map(|block| match block {
            Block::Heading(_, text) => text.clone(),
            Block::Table(lines) | Block::Paragraph(lines) => lines.join("\n"),
            Block::Code(..) => String::new(),
        });
        prose.collect::<Vec<_>>().join("\n\n")
    }

    /// What stands between backticks outside of code.
    fn names(&self) -> Vec<String> {
        self.prose().split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }
}

fn is_more_of_a_paragraph(line: &str) -> bool {
    let item = line.starts_with("- ") || line.starts_with(|c: char| c.is_ascii_digit()) && line.contains(". ");
    !line.is_empty() && !item && !line.starts_with(['#', '|']) && !line.starts_with("```")
}

fn pages() -> Vec<Page> {
    let mut paths: Vec<String> =
        ["README.md", "README.vi.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
            .map(str::to_owned)
            .into();
    let docs = files(&checkout().join("docs"), "md");
    paths.extend(docs.iter().map(|path| path.strip_prefix(checkout()).unwrap().to_string_lossy().into_owned()));
    paths.iter().map(|path| Page::read(path)).collect()
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn the_readme_is_short() {
    let lines = text("README.md").lines().count();
    assert!(lines <= MOST_LINES_OF_README, "{lines} lines");
}

#[test]
fn no_paragraph_is_long() {
    for page in pages() {
        for block in &page.blocks {
            let Block::Paragraph(lines) = block else { continue };
            let words = lines.iter().flat_map(|line| line.split_whitespace()).count();
            assert!(words <= MOST_WORDS && lines.len() <= MOST_LINES, "{}: {words} words: {lines:#?}", page.path);
        }
    }
}

/// What is wider is cut where the page is shown. Tables made of text are wide, and can be moved.
#[test]
fn no_code_is_wider_than_its_page() {
    for page in pages() {
        for (language, code) in page.code().filter(|(language, _)| !["mermaid", "text"].contains(language)) {
            let wide: Vec<_> = code.lines().filter(|line| line.chars().count() > WIDEST_CODE).collect();
            assert!(wide.is_empty(), "{}, {language}: {wide:#?}", page.path);
        }
    }
}

#[test]
fn every_link_leads_somewhere() {
    for page in pages() {
        let prose = page.prose();
        for link in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let linked = match path {
                "" => page.path.clone(),
                path => {
                    let path = Path::new(&page.path).parent().unwrap().join(path);
                    path.to_string_lossy().into_owned()
                }
            };
            assert!(checkout().join(&linked).exists(), "{}: {link}", page.path);
            if !anchor.is_empty() {
                let there = Page::read(&linked);
                let anchors: Vec<String> = there.headings().into_iter().map(|(_, text)| anchor_of(text)).collect();
                assert!(anchors.iter().any(|there| there == anchor), "{}: {link}: {anchors:?}", page.path);
            }
        }
    }
}

/// As GitHub makes it.
fn anchor_of(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

#[test]
fn every_file_that_is_named_is_there() {
    for page in pages() {
        for name in page.names() {
            let is_plain = !name.contains(['*', '<', '…', ' ', '#', '$']);
            let first = name.split('/').next().unwrap_or_default();
            let in_a_folder = name.contains('/') && first != "target" && checkout().join(first).is_dir();
            let at_the_top = !name.contains('/') && [".md", ".yaml"].iter().any(|end| name.ends_with(end));
            if is_plain && (in_a_folder || at_the_top) {
                assert!(checkout().join(&name).exists(), "{}: {name}", page.path);
            }
        }
    }
}

#[test]
fn every_test_that_is_named_is_there() {
    let code: Vec<String> = ["functions", "tests"]
        .iter()
        .flat_map(|folder| files(&checkout().join(folder), "rs"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    for page in pages() {
        for name in page.names() {
            let is_a_test =
                name.matches('_').count() >= 3 && !name.contains(|c: char| !c.is_ascii_lowercase() && c != '_');
            let signature = format!("fn {name}(");
            assert!(!is_a_test || code.iter().any(|code| code.contains(&signature)), "{}: {name}", page.path);
            if let Some((_, binary)) = name.split_once(" --test ") {
                let tests = checkout().join("tests/tests");
                let is_there =
                    tests.join(format!("{binary}.rs")).exists() || tests.join(binary).join("main.rs").exists();
                assert!(is_there, "{}: {name}", page.path);
            }
        }
    }
}

#[test]
fn every_make_target_that_is_named_is_there() {
    let makefile = text("Makefile");
    let targets: Set = makefile
        .lines()
        .filter(|line| line.split_once(": ").is_some_and(|(_, text)| text.contains("## ")))
        .map(|line| line.split(':').next().unwrap().to_owned())
        .collect();
    let mut named = Set::new();
    for page in pages() {
        let in_code = page.code().flat_map(|(_, code)| code.lines().map(str::to_owned).collect::<Vec<_>>());
        for command in in_code.chain(page.names()) {
            if let Some(target) = command.strip_prefix("make ") {
                assert!(targets.contains(target), "{}: make {target}", page.path);
                named.insert(target.to_owned());
            }
        }
    }
    assert!(named.contains("demo") && named.contains("build"), "{named:?}");
}

#[test]
fn every_request_of_a_page_is_one() {
    let mut requests = 0;
    for page in pages() {
        for (language, code) in page.code() {
            let request = match language {
                "sh" => started(code),
                // What stands in pages about something else than requests is not one.
                "json" if ["docs/request.md", "docs/cases.md"].contains(&page.path.as_str()) => Some((None, code)),
                _ => None,
            };
            let Some((machine, text)) = request else { continue };
            let place = format!("{}: {text}", page.path);
            let request: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{place}: {error}"));
            // A plan, or a report.
            if machine.is_none() && request.get("status").is_some() {
                continue;
            }
            check(machine.unwrap_or_else(|| machine_of(&request)), &request, &place);
            requests += 1;
        }
    }
    assert!(requests > 10, "{requests}");
}

/// The state machine that a command starts, and with what.
fn started(command: &str) -> Option<(Option<&str>, &str)> {
    let (_, rest) = command.split_once("start-execution --state-machine-arn <")?;
    let (machine, rest) =
        rest.split_once("StateMachineArn> --input '").expect("a state machine of the stack's outputs");
    Some((Some(machine), rest.split('\'').next()?))
}

fn machine_of(request: &Value) -> &'static str {
    match request.get("targets") {
        Some(Value::Array(targets)) if targets.iter().all(Value::is_object) => "ShareAmi",
        Some(_) => "RevokeShare",
        None if request.get("detail").is_some() => "UndoShare",
        None => "AuditShares",
    }
}

fn check(machine: &str, request: &Value, place: &str) {
    let source =
        Source { account_id: AccountId::parse("111111111111").unwrap(), region: Region::parse("eu-west-1").unwrap() };
    let problems = match machine {
        "ShareAmi" => Request::parse(request, &source).err(),
        "PlanShare" => Request::parse_plan(request, &source).err(),
        "RevokeShare" => RevokeRequest::parse(request, &source).err(),
        "AuditShares" => AuditRequest::parse(request, &source).err(),
        "UndoShare" => {
            assert!(request["detail"]["executionArn"].is_string(), "{place}");
            None
        }
        other => panic!("{place}: {other} is no state machine"),
    };
    assert!(problems.is_none(), "{place}: {problems:?}");
}

#[test]
fn the_operator_is_told_every_parameter_and_every_alarm() {
    let told = text("docs/operate.md");
    let names = |file: &str, part: &str| template(file)[part].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let files = ["template.yaml", "accounts/source.yaml", "accounts/target.yaml", "accounts/organization.yaml"];
    let parameters = files.into_iter().flat_map(|file| names(file, "Parameters"));
    let alarms = names("template.yaml", "Resources").into_iter().filter(|name| name.ends_with("Alarm"));
    for name in parameters.chain(alarms) {
        assert!(told.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn the_vietnamese_readme_says_the_same() {
    let [english, vietnamese] = ["README.md", "README.vi.md"].map(Page::read);
    let levels = |page: &Page| page.headings().into_iter().map(|(level, _)| level).collect::<Vec<_>>();
    assert_eq!(levels(&vietnamese), levels(&english));
    assert_eq!(vietnamese.tables(), english.tables(), "rows of each table");
    let commands = |page: &Page| {
        page.code().map(|(language, code)| (language.to_owned(), without_comments(code))).collect::<Vec<_>>()
    };
    assert_eq!(commands(&vietnamese), commands(&english));
}

fn without_comments(code: &str) -> String {
    code.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
}
