//! Runs as text: what happened, step by step, independent of how it was chosen.
//!
//! A script has a head that says what the network is like, the line `steps`, and one step a line:
//! its virtual time in nanoseconds and what happens. `n1.0` is thread 0 of node 1. A message is
//! named by sender and receiver, kind, page, request, transaction, and, if the same has been sent
//! several times with another content, its number among those (`~1`). Delivered twice it is a
//! duplicate; never delivered it is lost.
//!
//! ```text
//! nodes 2 threads 1 pages 1
//! homes p0 n0
//! initial p0 n0
//! hold 1 1
//! plant early-ack
//! expect I3
//! steps
//! 0 n1.0 access p0 read
//! 5 n1>n0 Get p0 n1#1 t0
//! ```
//!
//! A script with bugs planted must end in the breach it expects; without the `plant` lines it must
//! run clean, as far as its steps still apply.

use crate::step::{Breach, Event, Plant, Rule, Shape, Step};
use crate::world::{Phase, World};
use dsm::{Access, Initial, Message, NodeId, PageId, Planted, RequestId};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io;

/// What a message is called.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Name {
    from: NodeId,
    to: NodeId,
    kind: String,
    page: PageId,
    request: RequestId,
    txn: u64,
}

/// Everything that was sent, by name; several have one name if a part of them that the name leaves
/// out has changed.
#[derive(Debug, Default)]
struct Mail<const W: usize = 1>(BTreeMap<Name, Vec<Message<u64, W>>>);

impl<const W: usize> Mail<W> {
    fn name(to: NodeId, from: NodeId, message: &Message<u64, W>) -> Name {
        Name {
            from,
            to,
            kind: message.kind.name().to_owned(),
            page: message.page,
            request: message.request,
            txn: message.txn,
        }
    }

    fn put(&mut self, to: NodeId, from: NodeId, message: &Message<u64, W>) {
        let same = self.0.entry(Mail::name(to, from, message)).or_default();
        if !same.contains(message) {
            same.push(message.clone());
        }
    }

    fn number(&self, name: &Name, message: &Message<u64, W>) -> usize {
        let same = self.0.get(name);
        same.and_then(|same| same.iter().position(|m| m == message))
            .unwrap_or(0)
    }
}

#[derive(Clone, PartialEq, Debug)]
enum Line<const W: usize = 1> {
    Step(Step<W>),
    Deliver(Name, usize),
}

/// A run as text.
#[derive(Clone, Debug)]
pub struct Script {
    /// Lines at the top that start with `#`.
    pub comment: String,
    pub shape: Shape,
    /// What must come of it with the bugs planted; nothing, if there are none.
    pub expect: Option<Rule>,
    lines: Vec<(u64, Line)>,
}

/// A script that is of no use.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ScriptError {
    #[error("line {line}: {what}")]
    Syntax { line: usize, what: String },
    #[error("step {step}, `{text}`, is not possible where it stands")]
    Unfit { step: usize, text: String },
}

/// What to do with a step that is not possible where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfit {
    Refuse,
    Skip,
}

/// How a replay ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Steps taken.
    pub steps: usize,
    pub breach: Option<Breach>,
}

impl Script {
    /// # Errors
    /// When a line cannot be understood.
    pub fn parse(text: &str) -> Result<Script, ScriptError> {
        let mut script = Script {
            comment: String::new(),
            shape: empty_shape(),
            expect: None,
            lines: Vec::new(),
        };
        let mut in_steps = false;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            let words: Vec<&str> = line.split_whitespace().collect();
            let parsed = match words.as_slice() {
                [] => Ok(()),
                ["steps"] if !in_steps => {
                    in_steps = true;
                    Ok(())
                }
                _ if line.starts_with('#') && !in_steps => {
                    script.comment += line;
                    script.comment.push('\n');
                    Ok(())
                }
                _ if line.starts_with('#') => Ok(()),
                words if in_steps => step(words, &script.shape).map(|s| script.lines.push(s)),
                words => script.head(words),
            };
            parsed.map_err(|what| ScriptError::Syntax {
                line: number + 1,
                what,
            })?;
        }
        match in_steps && script.shape.nodes > 0 && !script.shape.homes.is_empty() {
            true => Ok(script),
            false => Err(ScriptError::Syntax {
                line: text.lines().count(),
                what: "ends before `nodes`, `homes` and `steps`".into(),
            }),
        }
    }

    fn head(&mut self, words: &[&str]) -> Result<(), String> {
        let shape = &mut self.shape;
        match words {
            ["nodes", nodes, "threads", threads, "pages", pages] => {
                shape.nodes = number(nodes)?;
                shape.threads = number(threads)?;
                shape.pages = number(pages)?;
            }
            ["homes", ranges @ ..] => {
                shape.homes = pairs(ranges, |who| id("n", who).map(NodeId))?;
            }
            ["initial", ranges @ ..] => {
                shape.initial = pairs(ranges, |who| match who {
                    "untouched" => Ok(Initial::Untouched),
                    who => id("n", who).map(|n| Initial::Owned(NodeId(n))),
                })?;
            }
            ["hold", ns, max] => (shape.hold_ns, shape.hold_ns_max) = (number(ns)?, number(max)?),
            ["retransmit", ns, max] => shape.retransmit_ns = Some((number(ns)?, number(max)?)),
            ["migratory"] => shape.migratory = true,
            ["foreign", max] => shape.foreign_max = Some(number(max)?),
            ["inline-protect"] => shape.inline_protect = true,
            ["anonymous"] => shape.anonymous = true,
            ["unchecked-answers"] => shape.check_answers = false,
            ["keep-bytes"] => shape.keep_bytes = true,
            ["plant", name] => plant(&mut shape.plant, &mut shape.planted, name)?,
            ["expect", rule] => self.expect = Some(expected(rule)?),
            _ => return Err(format!("`{}` is not understood", words.join(" "))),
        }
        Ok(())
    }

    /// Without the planted bugs.
    #[must_use]
    pub fn sound(&self) -> Script {
        let mut script = self.clone();
        script.shape.plant = Plant::Nothing;
        script.shape.planted = Planted::NOTHING;
        script.shape.check_answers = true;
        script.expect = None;
        script
    }

    /// Takes every step.
    ///
    /// # Errors
    /// When a step is not possible where it stands, with [`Unfit::Refuse`].
    pub fn replay(&self, unfit: Unfit) -> Result<Outcome, ScriptError> {
        let mut world = World::new(&self.shape);
        let mut mail = Mail::default();
        let mut steps = 0;
        for (number, (now_ns, line)) in self.lines.iter().enumerate() {
            let step = match line {
                Line::Step(step) => fits(&world, step).then(|| step.clone()),
                Line::Deliver(name, copy) => {
                    let sent = mail.0.get(name).and_then(|same| same.get(*copy));
                    sent.map(|message| Step::Deliver {
                        to: name.to,
                        from: name.from,
                        message: message.clone(),
                    })
                }
            };
            let Some(step) = step else {
                if unfit == Unfit::Skip {
                    continue;
                }
                return Err(ScriptError::Unfit {
                    step: number + 1,
                    text: text(*now_ns, line),
                });
            };
            steps += 1;
            if let Err(breach) = world.step(*now_ns, step) {
                return Ok(Outcome {
                    steps,
                    breach: Some(breach),
                });
            }
            for event in world.take_events() {
                if let Event::Sent { to, from, message } = event {
                    mail.put(to, from, &message);
                }
            }
        }
        let breach = world.check_everything().err();
        Ok(Outcome { steps, breach })
    }

    /// The shortest script found that ends in the same breach, by leaving out ever smaller parts.
    #[must_use]
    pub fn shrunk(&self) -> Script {
        let rule = |script: &Script| {
            let outcome = script.replay(Unfit::Skip).ok();
            outcome.and_then(|o| Some((o.steps, o.breach?.rule)))
        };
        let Some((_, wanted)) = rule(self) else {
            return self.clone();
        };
        let mut best = self.clone();
        best.expect = Some(wanted);
        let mut part = best.lines.len().div_ceil(2);
        while part > 0 {
            let mut at = 0;
            while at < best.lines.len() {
                let mut fewer = best.clone();
                fewer.lines.drain(at..(at + part).min(best.lines.len()));
                match rule(&fewer) {
                    Some((_, found)) if found == wanted => best = fewer,
                    _ => at += part,
                }
            }
            part /= 2;
        }
        best
    }

    /// Number of steps.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.comment)?;
        f.write_str(&head(&self.shape))?;
        if let Some(rule) = self.expect {
            writeln!(f, "expect {rule}")?;
        }
        writeln!(f, "steps")?;
        for (now_ns, line) in &self.lines {
            writeln!(f, "{}", text(*now_ns, line))?;
        }
        Ok(())
    }
}

/// Writes a run down while it happens: each step before it is taken, so that one that panics is
/// the last.
pub struct Recorder<const W: usize = 1> {
    to: Box<dyn io::Write>,
    mail: Mail<W>,
}

impl<const W: usize> fmt::Debug for Recorder<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl<const W: usize> Recorder<W> {
    /// # Errors
    /// When nothing can be written.
    pub fn new(shape: &Shape, mut to: Box<dyn io::Write>) -> io::Result<Recorder<W>> {
        writeln!(to, "{}steps", head(shape))?;
        Ok(Recorder {
            to,
            mail: Mail::default(),
        })
    }

    pub(crate) fn sent(&mut self, to: NodeId, from: NodeId, message: &Message<u64, W>) {
        self.mail.put(to, from, message);
    }

    pub(crate) fn step(&mut self, now_ns: u64, step: &Step<W>) {
        let line = match step {
            Step::Deliver { to, from, message } => {
                let name = Mail::name(*to, *from, message);
                let copy = self.mail.number(&name, message);
                Line::Deliver(name, copy)
            }
            step => Line::Step(step.clone()),
        };
        let written = writeln!(self.to, "{}", text(now_ns, &line));
        if let Err(error) = written.and_then(|()| self.to.flush()) {
            panic!("writing the script: {error}");
        }
    }
}

fn empty_shape() -> Shape {
    Shape {
        nodes: 0,
        threads: 0,
        pages: 0,
        homes: Vec::new(),
        initial: Vec::new(),
        hold_ns: 0,
        hold_ns_max: 0,
        retransmit_ns: None,
        migratory: false,
        foreign_max: None,
        keep_bytes: false,
        planted: Planted::NOTHING,
        plant: Plant::Nothing,
        inline_protect: false,
        anonymous: false,
        check_answers: true,
    }
}

/// Sets the bug of this name.
///
/// # Errors
/// When there is none.
pub(crate) fn plant(runtime: &mut Plant, engine: &mut Planted, name: &str) -> Result<(), String> {
    match name {
        "early-ack" => engine.early_ack = true,
        "lost-sharer" => engine.lost_sharer = true,
        "early-protected" => *runtime = Plant::EarlyProtected,
        "early-bytes" => *runtime = Plant::EarlyBytes,
        "skip-fill" => *runtime = Plant::SkipFill,
        "early-discard" => *runtime = Plant::EarlyDiscard,
        _ => return Err(format!("there is no bug called `{name}`")),
    }
    Ok(())
}

fn head(shape: &Shape) -> String {
    let mut text = format!(
        "nodes {} threads {} pages {}\nhomes",
        shape.nodes, shape.threads, shape.pages
    );
    let put = |text: &mut String, word: fmt::Arguments<'_>| {
        let Ok(()) = text.write_fmt(word) else {
            unreachable!("a String takes everything")
        };
    };
    for (page, home) in &shape.homes {
        put(&mut text, format_args!(" p{} {home}", page.0));
    }
    text += "\ninitial";
    for (page, initial) in &shape.initial {
        match initial {
            Initial::Owned(node) => put(&mut text, format_args!(" p{} {node}", page.0)),
            Initial::Untouched => put(&mut text, format_args!(" p{} untouched", page.0)),
        }
    }
    put(
        &mut text,
        format_args!("\nhold {} {}\n", shape.hold_ns, shape.hold_ns_max),
    );
    if let Some((first, max)) = shape.retransmit_ns {
        put(&mut text, format_args!("retransmit {first} {max}\n"));
    }
    if let Some(max) = shape.foreign_max {
        put(&mut text, format_args!("foreign {max}\n"));
    }
    let flags = [
        (shape.migratory, "migratory"),
        (shape.inline_protect, "inline-protect"),
        (shape.anonymous, "anonymous"),
        (shape.keep_bytes, "keep-bytes"),
        (!shape.check_answers, "unchecked-answers"),
        (shape.planted.early_ack, "plant early-ack"),
        (shape.planted.lost_sharer, "plant lost-sharer"),
        (
            shape.plant == Plant::EarlyProtected,
            "plant early-protected",
        ),
        (shape.plant == Plant::EarlyBytes, "plant early-bytes"),
        (shape.plant == Plant::SkipFill, "plant skip-fill"),
        (shape.plant == Plant::EarlyDiscard, "plant early-discard"),
    ];
    for (_, flag) in flags.iter().filter(|(set, _)| *set) {
        put(&mut text, format_args!("{flag}\n"));
    }
    text
}

fn text<const W: usize>(now_ns: u64, line: &Line<W>) -> String {
    let what = match line {
        Line::Step(Step::Access { node, thread, want }) => {
            let want = want
                .iter()
                .map(|(page, access)| format!(" p{} {}", page.0, word(*access)));
            format!("{node}.{thread} access{}", want.collect::<String>())
        }
        Line::Step(Step::Ahead { node, page, access }) => {
            let access = word(*access);
            format!("{node} ahead p{} {access}", page.0)
        }
        Line::Step(Step::Evict { node, page }) => format!("{node} evict p{}", page.0),
        Line::Step(Step::Resume { node, thread }) => format!("{node}.{thread} resume"),
        Line::Step(Step::Protected { node, page }) => format!("{node} protected p{}", page.0),
        Line::Step(Step::Timeout { node }) => format!("{node} timeout"),
        Line::Step(Step::Crash { node }) => format!("{node} crash"),
        Line::Step(Step::Lost { node, lost }) => format!("{node} lost {lost}"),
        Line::Step(Step::Deliver { .. }) => unreachable!("delivered by name"),
        Line::Deliver(name, copy) => {
            let copy = if *copy == 0 {
                String::new()
            } else {
                format!(" ~{copy}")
            };
            format!(
                "{}>{} {} p{} {} t{}{copy}",
                name.from, name.to, name.kind, name.page.0, name.request, name.txn
            )
        }
    };
    format!("{now_ns} {what}")
}

fn step(words: &[&str], shape: &Shape) -> Result<(u64, Line), String> {
    let [now_ns, rest @ ..] = words else {
        return Err("no time".into());
    };
    let node = |word: &str| match id("n", word)? {
        node if node < shape.nodes => Ok(NodeId(node)),
        _ => Err(format!("there is no node {word}")),
    };
    let page = |word: &str| match id("p", word)? {
        page if page < shape.pages => Ok(PageId(page)),
        _ => Err(format!("there is no page {word}")),
    };
    let thread = |word: &str| {
        let (on, thread) = word
            .split_once('.')
            .ok_or(format!("`{word}` is no thread"))?;
        match number(thread)? {
            thread if thread < shape.threads => Ok((node(on)?, thread)),
            _ => Err(format!("there is no thread {word}")),
        }
    };
    let line = match rest {
        [who, "access", want @ ..] if !want.is_empty() => {
            let (node, thread) = thread(who)?;
            let want = pairs(want, access)?;
            if let Some((page, _)) = want.iter().find(|(p, _)| p.0 >= shape.pages) {
                return Err(format!("there is no page {page}"));
            }
            Line::Step(Step::Access { node, thread, want })
        }
        [who, "resume"] => {
            let (node, thread) = thread(who)?;
            Line::Step(Step::Resume { node, thread })
        }
        [who, "ahead", what, how] => Line::Step(Step::Ahead {
            node: node(who)?,
            page: page(what)?,
            access: access(how)?,
        }),
        [who, "evict", what] => Line::Step(Step::Evict {
            node: node(who)?,
            page: page(what)?,
        }),
        [who, "protected", what] => Line::Step(Step::Protected {
            node: node(who)?,
            page: page(what)?,
        }),
        [who, "timeout"] => Line::Step(Step::Timeout { node: node(who)? }),
        [who, "crash"] => Line::Step(Step::Crash { node: node(who)? }),
        [who, "lost", lost] => Line::Step(Step::Lost {
            node: node(who)?,
            lost: node(lost)?,
        }),
        [way, kind, what, request, txn, copy @ ..] if copy.len() < 2 => {
            let (from, to) = way.split_once('>').ok_or(format!("`{way}` is no way"))?;
            let (asker, seq) = request
                .split_once('#')
                .ok_or(format!("`{request}` is no request"))?;
            let name = Name {
                from: node(from)?,
                to: node(to)?,
                kind: (*kind).to_owned(),
                page: page(what)?,
                request: RequestId {
                    node: node(asker)?,
                    seq: number(seq)?,
                },
                txn: id("t", txn)?,
            };
            let copy = copy.first().map_or(Ok(0), |copy| id("~", copy))?;
            Line::Deliver(name, copy)
        }
        _ => return Err(format!("`{}` is not understood", words.join(" "))),
    };
    Ok((number(now_ns)?, line))
}

/// Whether the step is one that can come where the world is. Deliveries are looked up instead.
fn fits(world: &World, step: &Step) -> bool {
    let phase = |node: NodeId, thread: u32| world.node(node).threads[thread as usize].phase;
    match step {
        Step::Access { node, thread, want } => {
            let me = &world.node(*node).threads[*thread as usize];
            let free = matches!(me.phase, Phase::Running | Phase::Resumed);
            free && (me.want.is_empty() || me.want == *want)
        }
        Step::Resume { node, thread } => matches!(phase(*node, *thread), Phase::Granted { .. }),
        Step::Protected { node, page } => world.node(*node).is_protecting(*page),
        Step::Timeout { node } => world.node(*node).engine.poll_timeout().is_some(),
        Step::Ahead { .. }
        | Step::Evict { .. }
        | Step::Crash { .. }
        | Step::Lost { .. }
        | Step::Deliver { .. } => true,
    }
}

fn word(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
    }
}

fn access(word: &str) -> Result<Access, String> {
    match word {
        "read" => Ok(Access::Read),
        "write" => Ok(Access::Write),
        _ => Err(format!("`{word}` is no access")),
    }
}

fn expected(word: &str) -> Result<Rule, String> {
    let rules = [
        Rule::SingleWriter,
        Rule::LastWrite,
        Rule::AnswerAfterMapping,
        Rule::Directory,
        Rule::Granted,
        Rule::Room,
        Rule::Refused,
    ];
    let found = rules.into_iter().find(|rule| rule.to_string() == word);
    found.ok_or(format!("`{word}` is no promise"))
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("`{word}` is no number"))
}

fn id<T: std::str::FromStr>(prefix: &str, word: &str) -> Result<T, String> {
    match word.strip_prefix(prefix) {
        Some(rest) => number(rest),
        None => Err(format!("`{word}` does not start with `{prefix}`")),
    }
}

/// Pages, each with a word that says something about it.
fn pairs<T>(
    words: &[&str],
    what: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<(PageId, T)>, String> {
    if !words.len().is_multiple_of(2) {
        return Err(format!("`{}` are not pairs", words.join(" ")));
    }
    let pairs = words.chunks_exact(2);
    pairs
        .map(|pair| Ok((PageId(id("p", pair[0])?), what(pair[1])?)))
        .collect()
}
