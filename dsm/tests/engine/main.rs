//! One engine at a time, driven by hand.

mod document;
mod hostile;
mod races;
mod script;
mod transitions;
