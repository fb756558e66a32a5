//! What a world is made of, what can happen in it, and what must not.

use dsm::{Access, Config, Initial, Message, NodeId, PageId};
use std::fmt;

/// What is needed all at once by one access: an instruction can touch several pages.
pub type Want = Vec<(PageId, Access)>;

/// A bug planted in the runtime's part. Those of the engine are [`dsm::Planted`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Plant {
    #[default]
    Nothing,
    /// `protected` is called before the mappings of a page to be given up have changed.
    EarlyProtected,
    /// The bytes are read when a change of protection is ordered instead of when it is complete.
    EarlyBytes,
    /// A fill after the first one for a page is skipped.
    SkipFill,
    /// Bytes that may be of no use are dropped without asking whether they are.
    EarlyDiscard,
}

/// What every engine and the memory under it are made of.
#[derive(Clone, Debug)]
pub struct Shape {
    pub nodes: u16,
    pub threads: u32,
    pub pages: u32,
    /// As in [`Config`].
    pub homes: Vec<(PageId, NodeId)>,
    pub initial: Vec<(PageId, Initial)>,
    pub hold_ns: u64,
    pub hold_ns_max: u64,
    /// First and longest.
    pub retransmit_ns: Option<(u64, u64)>,
    pub migratory: bool,
    /// As in [`Config`], of every node.
    pub foreign_max: Option<u32>,
    /// The network loses or repeats messages, so bytes that were sent may have to be sent again.
    pub keep_bytes: bool,
    pub planted: dsm::Planted,
    pub plant: Plant,
    /// Mappings change at once, between two effects, instead of in a step of their own.
    pub inline_protect: bool,
    /// Each fault has a token of its own, so that the engine cannot know the thread.
    pub anonymous: bool,
    /// Whether an answer that leaves too early is a breach by itself. Without, what comes of it
    /// has to be noticed.
    pub check_answers: bool,
}

impl Shape {
    pub fn config(&self, me: NodeId) -> Config {
        let mut config = Config::new(me, self.nodes, self.pages);
        config.homes.clone_from(&self.homes);
        config.initial.clone_from(&self.initial);
        (config.hold_ns, config.hold_ns_max) = (self.hold_ns, self.hold_ns_max);
        config.retransmit_ns = self.retransmit_ns.map(|(first, _)| first);
        if let Some((_, max)) = self.retransmit_ns {
            config.retransmit_ns_max = max;
        }
        config.migratory = self.migratory;
        config.foreign_max = self.foreign_max;
        config.planted = self.planted;
        config
    }
}

/// Which promise was broken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rule {
    /// I1
    SingleWriter,
    /// I2
    LastWrite,
    /// I3
    AnswerAfterMapping,
    /// I6
    Directory,
    /// I8
    Granted,
    /// I11
    Room,
    /// A correct peer's message was refused, or a directory contradicts its own node.
    Refused,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::SingleWriter => "I1",
            Rule::LastWrite => "I2",
            Rule::AnswerAfterMapping => "I3",
            Rule::Directory => "I6",
            Rule::Granted => "I8",
            Rule::Room => "I11",
            Rule::Refused => "refused",
        })
    }
}

/// A broken promise.
#[derive(Clone, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[error("{rule}: {what}")]
pub struct Breach {
    pub rule: Rule,
    pub what: String,
}

pub(crate) fn breach<T>(rule: Rule, what: String) -> Result<T, Breach> {
    Err(Breach { rule, what })
}

/// What can happen next.
#[derive(Clone, PartialEq, Debug)]
pub enum Step<const W: usize = 1> {
    /// The thread makes its access, or faults.
    Access {
        node: NodeId,
        thread: u32,
        want: Want,
    },
    /// The node asks for a page that no thread needs yet.
    Ahead {
        node: NodeId,
        page: PageId,
        access: Access,
    },
    /// The node wants to be rid of a page, whether or not it needs the room.
    Evict { node: NodeId, page: PageId },
    /// The thread runs after a grant; its access follows.
    Resume { node: NodeId, thread: u32 },
    /// The mappings have changed as ordered.
    Protected { node: NodeId, page: PageId },
    /// The engine's deadline has passed.
    Timeout { node: NodeId },
    Deliver {
        to: NodeId,
        from: NodeId,
        message: Message<u64, W>,
    },
    /// The node stops for good.
    Crash { node: NodeId },
    /// The node learns that another is gone.
    Lost { node: NodeId, lost: NodeId },
}

impl<const W: usize> Step<W> {
    /// Where it happens.
    pub fn node(&self) -> NodeId {
        match self {
            Step::Access { node, .. }
            | Step::Ahead { node, .. }
            | Step::Evict { node, .. }
            | Step::Resume { node, .. }
            | Step::Protected { node, .. }
            | Step::Timeout { node }
            | Step::Deliver { to: node, .. }
            | Step::Crash { node }
            | Step::Lost { node, .. } => *node,
        }
    }
}

/// What came of a step, for the caller to schedule.
#[derive(Clone, Hash, Debug)]
pub enum Event<const W: usize = 1> {
    Sent {
        to: NodeId,
        from: NodeId,
        message: Message<u64, W>,
    },
    /// A [`Step::Protected`] is to follow.
    Protecting { node: NodeId, page: PageId },
    /// A [`Step::Resume`] is to follow.
    Granted {
        node: NodeId,
        thread: u32,
        /// When it asked.
        since_ns: u64,
    },
    /// The thread has made its access.
    Made { node: NodeId, thread: u32 },
    /// It has not, and waits for a grant.
    Faulted { node: NodeId, thread: u32 },
}
