//! A picture of each state machine, made from its definition: Mermaid in ARCHITECTURE.md, where it stands between
//! two markers, and SVG in docs/machines/.

use std::path::PathBuf;

use crate::{Result, asl_format, engine::checkout};

mod graph;
mod layout;
mod mermaid;
mod svg;

use graph::Graph;

/// Every file that has pictures, and what should be in it.
pub fn pictures() -> Result<Vec<(PathBuf, String)>> {
    let page = checkout().join("ARCHITECTURE.md");
    let mut text = read(&page)?;
    let mut files = vec![];
    for path in asl_format::definitions()? {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let name = file.trim_end_matches(".asl.json");
        let in_file = |error| format!("{}: {error}", path.display());
        let graph = Graph::read(&serde_json::from_str(&read(&path)?)?).map_err(in_file)?;
        text =
            with_picture(&text, name, &mermaid::draw(&graph)).map_err(|error| format!("ARCHITECTURE.md: {error}"))?;
        files.push((checkout().join(format!("docs/machines/{name}.svg")), svg::draw(name, &graph)));
    }
    files.push((page, text));
    Ok(files)
}

fn read(path: &PathBuf) -> Result<String> {
    Ok(std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?)
}

/// `page` with the picture between the markers of that name.
fn with_picture(page: &str, name: &str, picture: &str) -> Result<String, String> {
    let begin = format!("<!-- picture: {name} -->\n");
    let missing = || format!("{} ... <!-- /picture --> is missing", begin.trim_end());
    let (before, rest) = page.split_once(&begin).ok_or_else(missing)?;
    let end = rest.find("<!-- /picture -->").ok_or_else(missing)?;
    let legend = format!("Thick: when nothing is amiss. Dashed: after an error. [As SVG](docs/machines/{name}.svg)");
    Ok(format!("{before}{begin}\n```mermaid\n{picture}```\n\n{legend}\n\n{}", &rest[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_markers_is_replaced() {
        let page = "a\n<!-- picture: x -->\nold\n<!-- /picture -->\nb\n<!-- picture: y -->\n<!-- /picture -->\n";
        let once = with_picture(page, "x", "new\n").unwrap();
        assert!(once.starts_with("a\n<!-- picture: x -->\n\n```mermaid\nnew\n```\n"), "{once}");
        assert!(once.ends_with("<!-- /picture -->\nb\n<!-- picture: y -->\n<!-- /picture -->\n"), "{once}");
        assert_eq!(with_picture(&once, "x", "new\n").unwrap(), once);
        assert!(with_picture(page, "z", "new\n").is_err());
    }
}
