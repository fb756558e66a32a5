//! What the two sides of an engine want done; the engine turns it into effects.

use crate::message::Message;
use crate::types::{Body, NodeId, PageId, State};
use std::collections::VecDeque;

#[derive(Clone, Hash, Debug)]
pub(crate) enum Order<B, const W: usize> {
    Send {
        to: NodeId,
        message: Message<B, W>,
        attach_page: bool,
    },
    Fill {
        page: PageId,
        body: Body<B>,
    },
    Protect {
        page: PageId,
        state: State,
    },
    Granted {
        page: PageId,
        waiter: u32,
    },
    Discard {
        page: PageId,
    },
}

pub(crate) type Orders<B, const W: usize> = VecDeque<Order<B, W>>;
