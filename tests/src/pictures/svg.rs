//! A graph that is laid out, as SVG.

use std::fmt::Write;

use super::{
    graph::{Graph, Kind, Place, State},
    layout::{Drawing, Look, Point, StateBox, lay_out},
};

const MARGIN: i32 = 24;
const HEADING: i32 = 34;
const LEGEND: i32 = 24;
const WIDTH_OF_LEGEND: i32 = 270;
const LINE: &str = "#444";
const ERROR: &str = "#b3261e";

pub(super) fn draw(name: &str, graph: &Graph) -> String {
    let drawing = lay_out(graph);
    let width = drawing.width.max(2 * WIDTH_OF_LEGEND) + 2 * MARGIN;
    let entries = legend(graph);
    let columns = (width - 2 * MARGIN) / WIDTH_OF_LEGEND;
    let rows = (entries.len() as i32 + columns - 1) / columns;
    let below = HEADING + drawing.height + 2 * MARGIN;
    let height = below + rows * LEGEND + MARGIN / 2;
    let mut text = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="Helvetica, Arial, 'Liberation Sans', sans-serif" font-size="13" fill="#222">
<defs>
<marker id="way" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto" markerUnits="userSpaceOnUse"><path d="M0,0 L9,4 L0,8 z" fill="{LINE}"/></marker>
<marker id="caught" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto" markerUnits="userSpaceOnUse"><path d="M0,0 L9,4 L0,8 z" fill="{ERROR}"/></marker>
</defs>
<rect width="{width}" height="{height}" fill="#fff"/>
<text x="{MARGIN}" y="{}" font-size="17" font-weight="bold">{name}</text>
"##,
        HEADING - 6
    );
    // In the middle of what may be wider for the legend's sake.
    let left = (width - drawing.width) / 2;
    graph_at(graph, &drawing, (left, HEADING), false, &mut text);
    for (entry, index) in entries.into_iter().zip(0..) {
        let place = (MARGIN + index % columns * WIDTH_OF_LEGEND, below + index / columns * LEGEND);
        text.push_str(&legend_entry(entry, place));
    }
    text + "</svg>\n"
}

/// All of it `is_failure` where it is in a Map that is.
fn graph_at(graph: &Graph, drawing: &Drawing, (left, top): Point, is_failure: bool, text: &mut String) {
    let mut line = |line: String| writeln!(text, "{line}").unwrap_or_default();
    line(format!(r#"<g transform="translate({left},{top})">"#));
    let start = &drawing.boxes[graph.start];
    let (x, y) = (start.x + start.axis, start.y);
    line(format!(r#"<circle cx="{x}" cy="{}" r="4" fill="{LINE}"/>"#, y - 20));
    line(path(Look::Way, true, &[(x, y - 20), (x, y)]));
    for (state, place) in graph.states.iter().zip(&drawing.boxes) {
        line(shape(state, place, is_failure || state.place == Place::Failure));
    }
    for of in &drawing.lines {
        line(path(of.look, of.arrow, &of.points));
    }
    for (look, (x, y)) in &drawing.joints {
        line(format!(r#"<circle cx="{x}" cy="{y}" r="2.5" fill="{}"/>"#, colour(*look)));
    }
    for (state, place) in graph.states.iter().zip(&drawing.boxes) {
        if state.goes_on {
            line(ring(place.x + place.axis, place.y + place.height));
        }
    }
    for (state, place) in graph.states.iter().zip(&drawing.boxes) {
        if let (Some(graph), Some((drawing, (x, y)))) = (&state.inside, &place.inside) {
            let is_failure = is_failure || state.place == Place::Failure;
            graph_at(graph, drawing, (place.x + x, place.y + y), is_failure, text);
        }
    }
    text.push_str("</g>\n");
}

fn colour(look: Look) -> &'static str {
    match look {
        Look::Way => LINE,
        Look::Caught => ERROR,
    }
}

fn shape(state: &State, place: &StateBox, failure: bool) -> String {
    let &StateBox { x, y, width, height, axis, .. } = place;
    let name = &state.name;
    if state.kind == Kind::Map {
        let fill = if failure { "#fff8f7" } else { "#f8fafd" };
        let stroke = if failure { ERROR } else { "#8aa0bd" };
        return format!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{fill}\" stroke=\"{stroke}\"/>\n\
             <text x=\"{}\" y=\"{}\"><tspan font-weight=\"bold\">{name}</tspan></text>",
            x + 12,
            y + 20
        );
    }
    let label = format!(r#"<text x="{}" y="{}" text-anchor="middle">{name}</text>"#, x + axis, y + height / 2 + 5);
    format!("{}\n{label}", outline(state.kind, failure, (x, y), (width, height)))
}

fn outline(kind: Kind, failure: bool, (x, y): Point, (width, height): Point) -> String {
    let (fill, stroke) = match kind {
        Kind::Succeed => ("#e2f3e5", "#2e7d32"),
        _ if failure => ("#fdecea", ERROR),
        Kind::Task | Kind::Map | Kind::Execution => ("#e8f0fb", "#3b6ea8"),
        Kind::Choice => ("#fdf6dc", "#a8861b"),
        Kind::Other => ("#f2f2f2", "#888"),
        Kind::Fail => ("#fdecea", ERROR),
    };
    let style = format!(r#"fill="{fill}" stroke="{stroke}""#);
    let radius = match kind {
        Kind::Choice => {
            let (right, middle, bottom) = (x + width, y + height / 2, y + height);
            return format!(
                r#"<path d="M{},{y} L{},{y} L{right},{middle} L{},{bottom} L{},{bottom} L{x},{middle} z" {style}/>"#,
                x + 10,
                right - 10,
                right - 10,
                x + 10
            );
        }
        Kind::Succeed | Kind::Fail => height / 2,
        Kind::Other => 10,
        Kind::Task | Kind::Map | Kind::Execution => 3,
    };
    let outline = format!(r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" {style}/>"#);
    if kind != Kind::Execution {
        return outline;
    }
    let (left, right, bottom) = (x + 6, x + width - 6, y + height);
    format!("{outline}\n<path d=\"M{left},{y} V{bottom} M{right},{y} V{bottom}\" stroke=\"{stroke}\"/>")
}

/// A line with round corners.
fn path(look: Look, arrow: bool, points: &[Point]) -> String {
    let mut corners = points.to_vec();
    corners.dedup();
    let mut d = String::new();
    for (index, &(x, y)) in corners.iter().enumerate() {
        let (before, after) = (index.checked_sub(1).map(|before| corners[before]), corners.get(index + 1));
        let step = match (before, after) {
            (None, _) => format!("M{x},{y}"),
            (Some(_), None) => format!(" L{x},{y}"),
            (Some(before), Some(&after)) => {
                let (from, to) = (towards((x, y), before), towards((x, y), after));
                format!(" L{},{} Q{x},{y} {},{}", from.0, from.1, to.0, to.1)
            }
        };
        d.push_str(&step);
    }
    let (colour, name) = (colour(look), if look == Look::Way { "way" } else { "caught" });
    let dashes = if look == Look::Caught { r#" stroke-dasharray="5,3""# } else { "" };
    let end = if arrow { format!(r#" marker-end="url(#{name})""#) } else { String::new() };
    format!(r#"<path d="{d}" fill="none" stroke="{colour}" stroke-width="1.3"{dashes}{end}/>"#)
}

/// The point some way from a corner to another, at most half of it.
fn towards((x, y): Point, other: Point) -> Point {
    let step = |from: i32, to: i32| from + ((to - from) / 2).clamp(-6, 6);
    (step(x, other.0), step(y, other.1))
}

fn ring(x: i32, y: i32) -> String {
    format!(r##"<circle cx="{x}" cy="{y}" r="4" fill="#fff" stroke="{ERROR}" stroke-width="1.5"/>"##)
}

#[derive(Clone, Copy)]
enum Entry {
    State(Kind, &'static str),
    Failure,
    Caught,
    GoesOn,
}

/// What of all signs the picture has.
fn legend(graph: &Graph) -> Vec<Entry> {
    let states = with_inner(graph);
    let kinds = [
        Entry::State(Kind::Task, "calls a function or a service"),
        Entry::State(Kind::Execution, "runs another state machine"),
        Entry::State(Kind::Choice, "chooses"),
        Entry::State(Kind::Other, "waits, or only assigns"),
    ];
    let is_there = |entry: &Entry| match *entry {
        Entry::State(kind, _) => states.iter().any(|state| state.kind == kind),
        Entry::Failure => states.iter().any(|state| state.place == Place::Failure),
        Entry::Caught => states.iter().any(|state| !state.caught.is_empty()),
        Entry::GoesOn => states.iter().any(|state| state.goes_on),
    };
    kinds.into_iter().chain([Entry::Failure, Entry::Caught, Entry::GoesOn]).filter(is_there).collect()
}

fn with_inner(graph: &Graph) -> Vec<&State> {
    let inner = graph.states.iter().filter_map(|state| state.inside.as_ref()).flat_map(with_inner);
    graph.states.iter().chain(inner).collect()
}

fn legend_entry(entry: Entry, (x, y): Point) -> String {
    let size = (36, 16);
    let (right, middle) = (x + size.0, y + size.1 / 2);
    let (sample, meaning) = match entry {
        Entry::State(kind, meaning) => (outline(kind, false, (x, y), size), meaning),
        Entry::Failure => (outline(Kind::Task, true, (x, y), size), "comes only after a failure"),
        Entry::Caught => (path(Look::Caught, true, &[(x, middle), (right, middle)]), "where an error leads"),
        Entry::GoesOn => (ring(x + size.0 / 2, middle), "goes on after an error"),
    };
    format!("{sample}\n<text x=\"{}\" y=\"{}\" font-size=\"12\">{meaning}</text>\n", right + 8, middle + 4)
}
