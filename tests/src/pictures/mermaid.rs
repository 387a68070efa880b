//! A graph in Mermaid's words. The path is thick, what an error leads to is dashed; errors of several states that go
//! to one state are one line.

use std::fmt::Write;

use super::graph::{Graph, Kind, Place, State};

pub(super) fn draw(graph: &Graph) -> String {
    let mut text = "flowchart TD\n".to_owned();
    scope(graph, 1, &mut text);
    for style in [
        "map fill:#f8fafd,stroke:#8aa0bd,color:#222",
        "failure fill:#fdecea,stroke:#b3261e,color:#222",
        "error fill:none,stroke:none,color:#b3261e",
        "back fill:none,stroke:none",
    ] {
        text.push_str(&format!("  classDef {style}\n"));
    }
    text
}

fn scope(graph: &Graph, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    let mut line = |line: String| writeln!(text, "{indent}{line}").unwrap_or_default();
    for (at, state) in graph.states.iter().enumerate() {
        let (path, others): (Vec<usize>, Vec<usize>) =
            state.ways.iter().partition(|&&to| graph.path.windows(2).any(|pair| pair == [at, to]));
        let shape = shape(state);
        line(path.first().map_or(shape.clone(), |&next| format!("{shape} ==> {}", graph.states[next].name)));
        if !others.is_empty() {
            let others: Vec<String> = others.into_iter().map(|to| target(graph, at, to)).collect();
            line(format!("{} --> {}", state.name, others.join(" & ")));
        }
    }
    for (at, state) in graph.states.iter().enumerate() {
        let sources: Vec<usize> =
            (0..graph.states.len()).filter(|&from| graph.states[from].caught.contains(&at)).collect();
        match sources.as_slice() {
            [] => {}
            [source] => line(format!("{} -.-> {}", graph.states[*source].name, target(graph, *source, at))),
            several => {
                let names: Vec<&str> = several.iter().map(|&from| graph.states[from].name.as_str()).collect();
                let (name, sources) = (&state.name, names.join("<br>"));
                line(format!(r#"errorTo{name}["error in<br>{sources}"]:::error -.-> {name}"#));
            }
        }
    }
    classify(graph, "map", |state| state.kind == Kind::Map && state.place != Place::Failure, &mut line);
    classify(graph, "failure", |state| state.place == Place::Failure, &mut line);
    for state in &graph.states {
        if let Some(inside) = &state.inside {
            text.push_str(&format!("{indent}subgraph {}\n{indent}  direction TB\n", state.name));
            scope(inside, depth + 1, text);
            text.push_str(&format!("{indent}end\n"));
        }
    }
}

/// Where a line ends. Mermaid puts a Map above all that it is in a loop with: there the line only says where it goes.
fn target(graph: &Graph, from: usize, to: usize) -> String {
    let name = &graph.states[to].name;
    if to < from && graph.states[to..from].iter().any(|between| between.kind == Kind::Map) {
        return format!(r#"{}To{name}["back to {name}"]:::back"#, graph.states[from].name);
    }
    name.clone()
}

fn classify(graph: &Graph, class: &str, of: impl Fn(&State) -> bool, line: &mut impl FnMut(String)) {
    let names: Vec<&str> = graph.states.iter().filter(|&state| of(state)).map(|state| state.name.as_str()).collect();
    if !names.is_empty() {
        line(format!("class {} {class}", names.join(",")));
    }
}

fn shape(state: &State) -> String {
    let name = &state.name;
    match state.kind {
        Kind::Task | Kind::Map => name.clone(),
        Kind::Execution => format!("{name}[[{name}]]"),
        Kind::Choice => format!("{name}{{{{{name}}}}}"),
        Kind::Other => format!("{name}({name})"),
        Kind::Succeed | Kind::Fail => format!("{name}([{name}])"),
    }
}
