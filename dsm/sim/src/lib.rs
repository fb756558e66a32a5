//! A deterministic simulator of the coherence protocol.
//!
//! **Purpose.** Runs the engines of `dsm`, the very code of the product, in networks that delay,
//! reorder, duplicate and lose messages and whose nodes crash, and checks the invariants of
//! PROTOCOL.md after every step.
//!
//! **Mechanism.** [`World`] has the engines, a model of memory and mappings under each, and the
//! checks. Three callers decide what happens next: [`Sim`] at random from one seed, [`script`]
//! from a file, and the model checker in `tests/exhaustive` in every possible way.
//!
//! **Guarantees.** Everything that happens follows from the seed and the parameters: the same ones
//! do the same, on every machine. After a step only the pages that it concerned are checked; that
//! the quick checks miss nothing is itself checked at the end of each run.
//!
//! **Cost.** About a microsecond and a half a step on one core, with 64 nodes and thousands of pages.

pub mod curve;
mod ledger;
mod options;
mod params;
pub mod script;
mod sim;
mod step;
mod world;

pub use ledger::Ledger;
pub use options::{Options, Size, commit};
pub use params::{Params, Sharing};
pub use sim::{Sim, Totals};
pub use step::{Breach, Event, Plant, Rule, Shape, Step, Want};
pub use world::{Node, Phase, Thread, World};
