//! Where the states of a graph stand, and how the lines between them run.
//!
//! There are three columns: branches, the path, failures. A line to the next state of the same column runs straight
//! down. Every other one leaves and enters at a side, and runs up or down in the gutter there, as one with all
//! that are of its kind and go to the same state.

use std::ops::RangeInclusive;

use super::graph::{Graph, Place};

const HEIGHT: i32 = 32;
/// Between a state and the next one below it.
const GAP: i32 = 26;
/// Between the lines of a gutter, and between a state and the first of them.
const TRACK: i32 = 12;
/// Between the last line of a gutter and a state: an arrow has room there.
const MARGIN: i32 = 22;
/// Between lines that leave or enter a state at one side.
const PORT: i32 = 8;
/// Between the first such line and a state's corner.
const CORNER: i32 = 5;
/// In a Map, above what is in it.
const TITLE: i32 = 30;
const PADDING: i32 = 18;
/// Of a letter, with something to spare.
const LETTER: i32 = 8;
/// Of the columns, and of the gutters: each is to the left of the column of its number.
const BRANCHES: usize = 0;
const PATH: usize = 1;
const FAILURES: usize = 2;

#[derive(Debug)]
pub(super) struct Drawing {
    pub(super) width: i32,
    pub(super) height: i32,
    /// Of the path.
    pub(super) axis: i32,
    /// One for each state, in the graph's order.
    pub(super) boxes: Vec<StateBox>,
    pub(super) lines: Vec<Line>,
    /// Where a line joins another.
    pub(super) joints: Vec<(Look, Point)>,
}

#[derive(Debug)]
pub(super) struct StateBox {
    column: usize,
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) width: i32,
    pub(super) height: i32,
    /// From the left to where lines enter from above.
    pub(super) axis: i32,
    /// Of a Map, with its place in the box.
    pub(super) inside: Option<(Drawing, Point)>,
}

pub(super) type Point = (i32, i32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Way,
    Caught,
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) look: Look,
    pub(super) arrow: bool,
    pub(super) points: Vec<Point>,
}

/// Lines that run as one.
struct Bundle {
    gutter: usize,
    look: Look,
    target: usize,
    enters: i32,
    sources: Vec<Source>,
    /// Of the gutter's track that it takes.
    x: i32,
}

struct Source {
    state: usize,
    leaves: i32,
    /// A line from branches to failures, or back, crosses the path between two of its states: there, after a
    /// stretch in the gutter on the near side.
    across: Option<Across>,
}

struct Across {
    gutter: usize,
    y: i32,
    x: i32,
}

impl Source {
    /// Where it comes to its bundle.
    fn joins(&self) -> i32 {
        self.across.as_ref().map_or(self.leaves, |across| across.y)
    }
}

impl StateBox {
    fn bottom(&self) -> i32 {
        self.y + self.height
    }

    /// The x of its side at a gutter.
    fn side(&self, gutter: usize) -> i32 {
        if gutter == self.column { self.x } else { self.x + self.width }
    }

    /// Where lines may leave and enter at a side: of a Map, beside its name.
    fn ports(&self) -> RangeInclusive<i32> {
        self.y + CORNER..=self.y + HEIGHT - CORNER
    }

    fn middle(&self) -> i32 {
        self.y + HEIGHT / 2
    }
}

pub(super) fn lay_out(graph: &Graph) -> Drawing {
    let mut boxes = sized(graph);
    let columns = stack(graph, &mut boxes);
    let mut bundles = bundles(graph, &boxes, &columns);
    widen(&mut boxes, &columns, &mut bundles);
    let mut drawing = Drawing { width: 0, height: 0, axis: 0, boxes, lines: vec![], joints: vec![] };
    for pair in columns.iter().flat_map(|column| column.windows(2)) {
        if let Some(look) = look(graph, pair[0], pair[1]) {
            let (from, to) = (&drawing.boxes[pair[0]], &drawing.boxes[pair[1]]);
            let points = vec![(from.x + from.axis, from.bottom()), (to.x + to.axis, to.y)];
            drawing.lines.push(Line { look, arrow: true, points });
        }
    }
    for bundle in &bundles {
        draw(bundle, &mut drawing);
    }
    to_origin(&mut drawing);
    drawing
}

/// How the line between two states looks, if there is one.
fn look(graph: &Graph, from: usize, to: usize) -> Option<Look> {
    let from = &graph.states[from];
    if from.ways.contains(&to) {
        return Some(Look::Way);
    }
    from.caught.contains(&to).then_some(Look::Caught)
}

/// The states' boxes, with no place yet.
fn sized(graph: &Graph) -> Vec<StateBox> {
    let letters = |name: &str| name.chars().count() as i32 * LETTER + 2 * PADDING;
    let column = |place: Place| match place {
        Place::Branch => BRANCHES,
        Place::Path => PATH,
        Place::Failure => FAILURES,
    };
    let sized = |state: &super::graph::State| {
        let column = column(state.place);
        let Some(inside) = state.inside.as_ref().map(lay_out) else {
            let same = graph.states.iter().filter(|other| other.place == state.place && other.inside.is_none());
            let width = same.map(|other| letters(&other.name)).max().unwrap_or_default();
            return StateBox { column, x: 0, y: 0, width, height: HEIGHT, axis: width / 2, inside: None };
        };
        let width = (inside.width + 2 * PADDING).max(letters(&state.name));
        let height = TITLE + inside.height + PADDING;
        let axis = inside.axis + PADDING;
        StateBox { column, x: 0, y: 0, width, height, axis, inside: Some((inside, (PADDING, TITLE))) }
    };
    graph.states.iter().map(sized).collect()
}

/// Finds out how far down each box stands. Answers with the columns, each from above to below.
fn stack(graph: &Graph, boxes: &mut [StateBox]) -> [Vec<usize>; 3] {
    let mut bottom = 0;
    for &at in &graph.path {
        boxes[at].y = bottom;
        bottom = boxes[at].bottom() + GAP;
    }
    let mut columns = [vec![], graph.path.clone(), vec![]];
    for at in 0..boxes.len() {
        let column = boxes[at].column;
        if column == PATH {
            continue;
        }
        let above = columns[column].last().copied();
        let lowest = above.map_or(0, |above: usize| boxes[above].bottom() + GAP);
        let ends = graph.states[at].ways.is_empty();
        let placed = columns.iter().flatten().filter(|&&from| look(graph, from, at).is_some());
        let beside = placed.map(|&from| boxes[from].y);
        // What ends stands beside the last that may end there.
        let beside = if ends { beside.max() } else { beside.min() }.unwrap_or_default();
        // A branch that goes on stands lower, beside a gap of the path: its lines do not meet those of a state there.
        let beside = if ends || column == FAILURES { beside } else { beside + HEIGHT / 2 + GAP / 3 };
        let follows = above.is_some_and(|above| look(graph, above, at).is_some());
        boxes[at].y = if follows && !ends { lowest } else { lowest.max(beside) };
        columns[column].push(at);
    }
    columns
}

/// What runs in the gutters, with where each line leaves and enters, but not yet how far from the columns.
fn bundles(graph: &Graph, boxes: &[StateBox], columns: &[Vec<usize>; 3]) -> Vec<Bundle> {
    let mut bundles: Vec<Bundle> = vec![];
    for (from, state) in graph.states.iter().enumerate() {
        let ways = state.ways.iter().map(|&to| (Look::Way, to));
        for (look, target) in ways.chain(state.caught.iter().map(|&to| (Look::Caught, to))) {
            if columns.iter().any(|column| column.windows(2).any(|pair| pair == [from, target])) {
                continue;
            }
            let gutter = gutter(look, boxes[from].column, boxes[target].column);
            let across = (boxes[from].column.abs_diff(boxes[target].column) == 2).then_some(Across {
                gutter: if gutter == PATH { FAILURES } else { PATH },
                y: 0,
                x: 0,
            });
            let source = Source { state: from, leaves: 0, across };
            let same = |bundle: &&mut Bundle| (bundle.gutter, bundle.look, bundle.target) == (gutter, look, target);
            match bundles.iter_mut().find(same) {
                Some(bundle) => bundle.sources.push(source),
                None => bundles.push(Bundle { gutter, look, target, enters: 0, sources: vec![source], x: 0 }),
            }
        }
    }
    cross(boxes, &columns[PATH], &mut bundles);
    let mut taken: [Vec<(i32, Option<usize>)>; 4] = Default::default();
    for (name, bundle) in bundles.iter().enumerate() {
        for across in bundle.sources.iter().filter_map(|source| source.across.as_ref()) {
            taken[PATH].push((across.y, Some(name)));
            taken[FAILURES].push((across.y, Some(name)));
        }
    }
    for port in ports(boxes, &bundles) {
        let straight = port.is_straight.then_some(port.bundle);
        let y = free(&mut taken[port.gutter], straight, port.wanted, boxes[port.state].ports());
        match port.source {
            None => bundles[port.bundle].enters = y,
            Some(source) => bundles[port.bundle].sources[source].leaves = y,
        }
    }
    bundles
}

/// Finds a place between states of the path for each line that crosses it.
fn cross(boxes: &[StateBox], path: &[usize], bundles: &mut [Bundle]) {
    let mut taken = vec![];
    for bundle in bundles {
        for source in &mut bundle.sources {
            let from = boxes[source.state].middle();
            if let Some(across) = &mut source.across {
                let gaps = path.iter().map(|&at| boxes[at].bottom() + GAP / 3);
                across.y = free(&mut taken, None, from, gaps.flat_map(|gap| gap..=gap + GAP / 3));
            }
        }
    }
}

/// Where a line would leave or enter a state at one side.
struct Port {
    gutter: usize,
    state: usize,
    bundle: usize,
    /// None where it enters.
    source: Option<usize>,
    wanted: i32,
    /// It goes straight to a state that is beside this one.
    is_straight: bool,
    /// From above to below, such that lines of the same state do not cross: what comes from far below is above what
    /// comes from less far, and the other way round.
    order: (i32, i32),
}

/// All of them, those that should have their place first.
fn ports(boxes: &[StateBox], bundles: &[Bundle]) -> Vec<Port> {
    let mut ports = vec![];
    for (name, bundle) in bundles.iter().enumerate() {
        let here = boxes[bundle.target].middle();
        let mut ends = vec![];
        for (index, source) in bundle.sources.iter().enumerate() {
            let from = boxes[source.state].middle();
            ends.push(source.across.as_ref().map_or(from, |across| across.y));
            let gutter = source.across.as_ref().map_or(bundle.gutter, |across| across.gutter);
            let to = source.across.as_ref().map_or(here, |across| across.y);
            ports.push(port(gutter, source.state, (name, Some(index)), from, &[to]));
        }
        ports.push(port(bundle.gutter, bundle.target, (name, None), here, &ends));
    }
    let of = |port: &Port| (port.gutter, port.state);
    ports.sort_by_key(|port| (of(port), port.order));
    for same in ports.chunk_by_mut(|one, other| of(one) == of(other)) {
        let last = same.len() as i32 - 1;
        let step = (HEIGHT - 2 * CORNER).checked_div(last).unwrap_or_default().min(PORT);
        let straight = same.iter().position(|port| port.is_straight);
        let base = match straight {
            Some(straight) => same[straight].wanted - straight as i32 * step,
            None => boxes[same[0].state].middle() - last * step / 2,
        };
        for (port, index) in same.iter_mut().zip(0..) {
            port.wanted = base + index * step;
        }
    }
    ports.sort_by_key(|port| !port.is_straight);
    ports
}

/// `here` is the middle of the state, `ends` where the lines come from or go to.
fn port(gutter: usize, state: usize, (bundle, source): (usize, Option<usize>), here: i32, ends: &[i32]) -> Port {
    let beside = ends.iter().copied().find(|end| end.abs_diff(here) < HEIGHT as u32 / 2);
    let (first, last) = (ends.iter().min().unwrap_or(&here) - here, ends.iter().max().unwrap_or(&here) - here);
    let order = match (first < 0, last > 0) {
        _ if beside.is_some() => (0, 0),
        (true, false) => (-1, -first),
        (false, true) => (1, -last),
        _ => (0, 1),
    };
    let wanted = beside.map_or(here, |end| (end + here) / 2);
    Port { gutter, state, bundle, source, wanted, is_straight: beside.is_some(), order }
}

/// The gutter that a line enters its target from.
fn gutter(look: Look, from: usize, to: usize) -> usize {
    match (from, to) {
        (BRANCHES, BRANCHES) => BRANCHES,
        (FAILURES, FAILURES) => FAILURES + 1,
        (_, FAILURES) | (FAILURES, PATH) => FAILURES,
        (PATH, PATH) if look == Look::Caught => FAILURES,
        _ => PATH,
    }
}

/// Of the heights that are possible the one as near to `wanted` as no other line is, which is then taken. Both ends of
/// a straight line are at the same.
fn free(
    taken: &mut Vec<(i32, Option<usize>)>,
    straight: Option<usize>,
    wanted: i32,
    possible: impl Iterator<Item = i32>,
) -> i32 {
    let room = |y: i32| {
        let others = taken.iter().filter(|(_, other)| straight.is_none() || straight != *other);
        others.map(|(other, _)| other.abs_diff(y)).min().unwrap_or(u32::MAX).min(PORT as u32)
    };
    let y = possible.min_by_key(|&y| (PORT as u32 - room(y), y.abs_diff(wanted))).unwrap_or(wanted);
    taken.push((y, straight));
    y
}

/// Finds out how far from the path, which is at 0, everything is.
fn widen(boxes: &mut [StateBox], columns: &[Vec<usize>; 3], bundles: &mut [Bundle]) {
    for &at in &columns[PATH] {
        boxes[at].x = -boxes[at].axis;
    }
    take_tracks(PATH, boxes, &columns[PATH], bundles);
    take_tracks(FAILURES, boxes, &columns[PATH], bundles);
    for (column, gutter) in [(BRANCHES, PATH), (FAILURES, FAILURES)] {
        let right = column == FAILURES;
        let axis = |at: &usize| {
            let this = &boxes[*at];
            let (top, bottom) = (this.y - TRACK, this.bottom() + TRACK);
            let near = if right { this.axis } else { this.width - this.axis };
            reach(gutter, boxes, &columns[PATH], bundles, (top, bottom)) + MARGIN + near
        };
        let axis = columns[column].iter().map(axis).max().unwrap_or_default();
        for &at in &columns[column] {
            boxes[at].x = if right { axis } else { -axis } - boxes[at].axis;
        }
    }
    take_tracks(BRANCHES, boxes, &columns[BRANCHES], bundles);
    take_tracks(FAILURES + 1, boxes, &columns[FAILURES], bundles);
}

/// Everything that runs up or down in a gutter: its span, and where to write its x.
fn runs(gutter: usize, bundles: &mut [Bundle]) -> Vec<((i32, i32), &mut i32)> {
    let mut runs = vec![];
    for bundle in bundles {
        if bundle.gutter == gutter {
            let ends = || bundle.sources.iter().map(Source::joins).chain([bundle.enters]);
            let span = (ends().min().unwrap_or_default(), ends().max().unwrap_or_default());
            runs.push((span, &mut bundle.x));
        }
        for source in &mut bundle.sources {
            if let Some(across) = source.across.as_mut().filter(|across| across.gutter == gutter) {
                runs.push(((source.leaves.min(across.y), source.leaves.max(across.y)), &mut across.x));
            }
        }
    }
    runs
}

/// Gives everything that runs in a gutter a place, the short ones next to `column`.
fn take_tracks(gutter: usize, boxes: &[StateBox], column: &[usize], bundles: &mut [Bundle]) {
    let sign = if gutter <= PATH { -1 } else { 1 };
    let mut taken: Vec<((i32, i32), i32)> = vec![];
    let mut runs = runs(gutter, bundles);
    runs.sort_by_key(|((top, bottom), _)| (bottom - top, *top));
    for (span, x) in runs {
        let mut away = edge(sign, boxes, column, span) + TRACK;
        let meets = |(top, bottom): (i32, i32)| top <= span.1 + PORT && span.0 <= bottom + PORT;
        while taken.iter().any(|&(other, x)| meets(other) && x.abs_diff(away) < TRACK as u32) {
            away += 1;
        }
        taken.push((span, away));
        *x = sign * away;
    }
}

/// How far to a side the states of a column reach, between two heights.
fn edge(sign: i32, boxes: &[StateBox], column: &[usize], (top, bottom): (i32, i32)) -> i32 {
    let near = column.iter().map(|&at| &boxes[at]).filter(|of| of.y <= bottom + TRACK && top <= of.bottom() + TRACK);
    near.map(|of| if sign < 0 { -of.x } else { of.x + of.width }).max().unwrap_or_default()
}

/// How far the path and the gutter beside it reach, between two heights.
fn reach(gutter: usize, boxes: &[StateBox], path: &[usize], bundles: &[Bundle], span: (i32, i32)) -> i32 {
    let sign = if gutter == PATH { -1 } else { 1 };
    let in_gutter = bundles.iter().flat_map(|bundle| {
        let across =
            bundle.sources.iter().filter_map(|source| source.across.as_ref().map(|across| (across.gutter, across.x)));
        across.chain([(bundle.gutter, bundle.x)])
    });
    let lines = in_gutter.filter(|&(of, _)| of == gutter).map(|(_, x)| sign * x).max().unwrap_or_default();
    edge(sign, boxes, path, span).max(lines)
}

fn draw(bundle: &Bundle, drawing: &mut Drawing) {
    let Bundle { gutter, look, x, enters, .. } = *bundle;
    let end = (drawing.boxes[bundle.target].side(gutter), enters);
    let mut entered = false;
    for above in [true, false] {
        let mut sources: Vec<&Source> =
            bundle.sources.iter().filter(|source| (source.joins() <= enters) == above).collect();
        sources.sort_by_key(|source| source.joins().abs_diff(enters));
        // The farthest is drawn all the way, so that of two dashed lines none lies upon the other.
        for (nearer, source) in sources.into_iter().rev().enumerate() {
            let from = &drawing.boxes[source.state];
            let mut points = match &source.across {
                None => vec![(from.side(gutter), source.leaves)],
                Some(across) => {
                    let begin = (from.side(across.gutter), source.leaves);
                    vec![begin, (across.x, source.leaves), (across.x, across.y)]
                }
            };
            points.push((x, source.joins()));
            if nearer == 0 {
                points.push((x, enters));
            }
            let arrow = nearer == 0 && !entered;
            if arrow {
                points.push(end);
                entered = true;
            } else {
                drawing.joints.extend(points.last().map(|&joint| (look, joint)));
            }
            drawing.lines.push(Line { look, arrow, points });
        }
    }
}

/// Moves everything so that the drawing begins at 0, with room for a line that enters from above.
fn to_origin(drawing: &mut Drawing) {
    let boxes = || drawing.boxes.iter().flat_map(|of| [(of.x, of.y), (of.x + of.width, of.bottom())]);
    let points: Vec<Point> = boxes().chain(drawing.lines.iter().flat_map(|line| line.points.clone())).collect();
    let left = points.iter().map(|point| point.0).min().unwrap_or_default() - 2;
    let top = points.iter().map(|point| point.1).min().unwrap_or_default() - GAP;
    let moved = |point: &mut Point| *point = (point.0 - left, point.1 - top);
    for of in &mut drawing.boxes {
        (of.x, of.y) = (of.x - left, of.y - top);
    }
    drawing.lines.iter_mut().flat_map(|line| &mut line.points).for_each(moved);
    drawing.joints.iter_mut().map(|(_, point)| point).for_each(moved);
    drawing.axis = -left;
    drawing.width = points.iter().map(|point| point.0).max().unwrap_or_default() - left + 2;
    drawing.height = points.iter().map(|point| point.1).max().unwrap_or_default() - top + 2;
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::asl_format;

    #[test]
    fn in_no_picture_does_anything_lie_upon_anything_else() {
        for path in asl_format::definitions().unwrap() {
            let definition = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            check(&Graph::read(&definition).unwrap());
        }
    }

    fn check(graph: &Graph) {
        let drawing = lay_out(graph);
        let name = |at: usize| &graph.states[at].name;
        for (at, one) in drawing.boxes.iter().enumerate() {
            assert!(one.x >= 0 && one.x + one.width <= drawing.width && one.bottom() <= drawing.height, "{}", name(at));
            for (other_at, other) in drawing.boxes.iter().enumerate().skip(at + 1) {
                let apart = one.x + one.width + MARGIN <= other.x
                    || other.x + other.width + MARGIN <= one.x
                    || one.bottom() + GAP <= other.y
                    || other.bottom() + GAP <= one.y;
                assert!(apart, "{} and {}", name(at), name(other_at));
            }
            for pair in drawing.lines.iter().flat_map(|line| line.points.windows(2)) {
                let ((left, right), (top, bottom)) = (sorted(pair[0].0, pair[1].0), sorted(pair[0].1, pair[1].1));
                let inside = left < one.x + one.width
                    && one.x < right.max(left + 1)
                    && top < one.bottom()
                    && one.y < bottom.max(top + 1);
                assert!(!inside, "{pair:?} crosses {}", name(at));
            }
        }
        let ends: Vec<(&Line, &[Point])> =
            drawing.lines.iter().flat_map(|line| line.points.windows(2).map(move |pair| (line, pair))).collect();
        for (index, (line, one)) in ends.iter().enumerate() {
            for (other_line, other) in &ends[index + 1..] {
                if std::ptr::eq(*line, *other_line) {
                    continue;
                }
                let same_x = [one[0].0, one[1].0, other[0].0, other[1].0].iter().all(|x| *x == one[0].0);
                let same_y = [one[0].1, one[1].1, other[0].1, other[1].1].iter().all(|y| *y == one[0].1);
                let meet = |one: (i32, i32), other: (i32, i32)| one.0 < other.1 && other.0 < one.1;
                let upon = same_x && meet(sorted(one[0].1, one[1].1), sorted(other[0].1, other[1].1))
                    || same_y && meet(sorted(one[0].0, one[1].0), sorted(other[0].0, other[1].0));
                assert!(!upon, "{one:?} lies upon {other:?}");
            }
        }
        graph.states.iter().filter_map(|state| state.inside.as_ref()).for_each(check);
    }

    fn sorted(one: i32, other: i32) -> (i32, i32) {
        (one.min(other), one.max(other))
    }
}
