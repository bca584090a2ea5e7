//! YAML text → a tree in which every key and value knows its line and column.
//!
//! Promises: never panics; work and memory are bounded by [`NODES_MAX`] and [`DEPTH_MAX`] whatever
//! the aliases say; no message contains a piece of the text, because any piece may be a secret.
//!
//! Leaves to others: what the keys mean (`keys.rs`). Stands on the event parser beneath
//! `serde-saphyr`, because serde stops at the first problem and forgets positions of keys.

use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, Span, Tag};

/// Most nodes in a file, those that aliases repeat included: room for about a thousand sources.
pub(crate) const NODES_MAX: usize = 50_000;

/// Deepest nesting, aliases included. The format itself needs 6.
pub(crate) const DEPTH_MAX: usize = 32;

/// One thing that is wrong with a config file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong, and what is accepted. One line.
    pub message: String,
}

/// A place in the file, both from 1; the column counts characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl At {
    pub(crate) const START: At = At { line: 1, column: 1 };

    pub(crate) fn problem(self, message: impl Into<String>) -> Problem {
        Problem { line: self.line, column: self.column, message: message.into() }
    }

    fn of(mark: Marker) -> Self {
        // The parser counts lines from 1 and columns from 0.
        Self { line: mark.line().max(1), column: mark.col() + 1 }
    }
}

/// A value and where it begins. No `Debug`: it may hold a secret.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) at: At,
    pub(crate) value: Value,
    /// Nodes in this tree, itself included.
    size: usize,
    /// Levels in this tree, itself included.
    depth: usize,
}

#[derive(Clone)]
pub(crate) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A scalar as it is written. `plain` is one without quotes: a candidate for a number or `true`.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) at: At,
    pub(crate) text: String,
}

impl Node {
    fn leaf(at: At, value: Value) -> Self {
        Self { at, value, size: 1, depth: 1 }
    }
}

/// The one document of `text`. Problems that leave a usable tree are added to `problems`; `None`
/// means that there is no tree, and that `problems` says why.
pub(crate) fn read(text: &str, problems: &mut Vec<Problem>) -> Option<Node> {
    let mut builder = Builder { open: Vec::new(), root: None, anchors: HashMap::new(), nodes: 0, problems };
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
    };
    for step in Parser::new_from_str_with_options(text, options) {
        let done = match step {
            Ok((event, span)) => builder.event(event, &span),
            Err(error) => Err(syntax(&error)),
        };
        if let Err(problem) = done {
            builder.problems.push(problem);
            return None;
        }
    }
    let root = builder.root.filter(|root| !matches!(root.value, Value::Null));
    if root.is_none() {
        problems.push(At::START.problem("the file is empty; accepted: a mapping with the key `sources`"));
    }
    root
}

fn syntax(error: &ScanError) -> Problem {
    // The parser's own text for this kind shows the character, which may be the first of a secret.
    let what = match error.kind() {
        ErrorKind::UnexpectedCharacter { .. } => "a value without quotes cannot begin with this character".to_owned(),
        ErrorKind::UnknownAnchor => "an alias (`*`) without its anchor (`&`)".to_owned(),
        ErrorKind::RecursionLimitExceeded => format!("nested deeper than {DEPTH_MAX} levels"),
        _ => error.info(),
    };
    At::of(*error.marker())
        .problem(format!("not YAML: {what}; accepted: YAML 1.2, with quotes around values with special characters"))
}

/// A collection whose end is still to come.
struct Open {
    at: At,
    anchor: usize,
    what: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map { entries: Vec<(Key, Node)>, next: Next },
}

/// What the next node of a mapping is.
enum Next {
    Key,
    Value(Key),
    /// The value of a key that cannot be used; it is read and dropped.
    Dropped,
}

struct Builder<'p> {
    open: Vec<Open>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    problems: &'p mut Vec<Problem>,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), Problem> {
        let at = At::of(span.start);
        let tag_at = span.tag_start().map_or(at, At::of);
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                Err(at.problem("a second YAML document begins here; accepted: one document per file"))
            }
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = self.tag(tag.as_deref(), "str", tag_at);
                let plain = style == ScalarStyle::Plain && !is_text;
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null { Value::Null } else { Value::Scalar { text: text.into_owned(), plain } };
                self.complete(Node::leaf(at, value), anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), "seq", tag_at);
                self.open.push(Open { at, anchor, what: OpenKind::List(Vec::new()) });
                Ok(())
            }
            Event::MappingStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), "map", tag_at);
                let what = OpenKind::Map { entries: Vec::new(), next: Next::Key };
                self.open.push(Open { at, anchor, what });
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { at, anchor, what }) = self.open.pop() else { return Ok(()) };
                let value = match what {
                    OpenKind::List(items) => Value::List(items),
                    OpenKind::Map { entries, .. } => Value::Map(entries),
                };
                let (size, depth) = match &value {
                    Value::List(items) => extent(items.iter()),
                    Value::Map(entries) => extent(entries.iter().map(|(_, node)| node)),
                    Value::Null | Value::Scalar { .. } => (1, 1),
                };
                self.complete(Node { at, value, size, depth }, anchor)
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(at.problem("this alias (`*`) is inside its own anchor (`&`); accepted: one after it"));
                };
                if self.nodes + node.size > NODES_MAX {
                    return Err(too_many(at));
                }
                if self.open.len() + node.depth > DEPTH_MAX {
                    return Err(at.problem(format!("nested deeper than {DEPTH_MAX} levels through this alias")));
                }
                self.nodes += node.size - 1;
                let node = Node { at, ..node.clone() };
                self.complete(node, 0)
            }
            _ => Ok(()),
        }
    }

    /// Whether the node carries the core tag `suffix`; every other tag is a problem.
    fn tag(&mut self, tag: Option<&Tag>, suffix: &str, at: At) -> bool {
        let Some(tag) = tag else { return false };
        let expected = tag.is_yaml_core_schema_tag(suffix);
        if !expected {
            self.problems.push(at.problem("this value has a YAML tag (`!`); accepted: the value without it"));
        }
        expected
    }

    /// Puts a finished node where it belongs.
    fn complete(&mut self, mut node: Node, anchor: usize) -> Result<(), Problem> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(too_many(node.at));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.what) {
            None => self.root = Some(node),
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Map { entries, next }) => match std::mem::replace(next, Next::Key) {
                Next::Key => match node.value {
                    Value::Scalar { text, .. } => {
                        if let Some((first, _)) = entries.iter().find(|(key, _)| key.text == text) {
                            let line = first.at.line;
                            self.problems.push(
                                node.at.problem(format!("duplicate key, already given on line {line}; accepted: once")),
                            );
                            *next = Next::Dropped;
                        } else {
                            *next = Next::Value(Key { at: node.at, text });
                        }
                    }
                    Value::Null | Value::List(_) | Value::Map(_) => {
                        self.problems.push(node.at.problem("a key must be one word"));
                        *next = Next::Dropped;
                    }
                },
                Next::Value(key) => {
                    // An absent value has no place of its own; its key shows it best.
                    if matches!(node.value, Value::Null) {
                        node.at = key.at;
                    }
                    entries.push((key, node));
                }
                Next::Dropped => {}
            },
        }
        Ok(())
    }
}

/// Size and depth of a collection of these.
fn extent<'n>(nodes: impl Iterator<Item = &'n Node>) -> (usize, usize) {
    let (size, depth) = nodes.fold((0, 0), |(size, depth), node| (size + node.size, depth.max(node.depth)));
    (size + 1, depth + 1)
}

fn too_many(at: At) -> Problem {
    at.problem(format!("the file has more than {NODES_MAX} values by here, repetitions through aliases included"))
}
