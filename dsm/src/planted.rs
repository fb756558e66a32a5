//! Bugs planted on purpose, so that every gate can be seen to fail: the model checker, the
//! simulator and the tests inside a guest must each catch them.
//!
//! Without the feature `planted` [`Planted`] is empty and its questions are constant, so a product
//! has nothing that could be turned on. With it, the simulator and the model checker set the
//! fields. The features `fault-early-ack` and `fault-lost-sharer` set them for a whole build, which
//! is the way into a guest.

/// Which bugs an engine has. Every node gets the same, like the rest of [`crate::Config`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Planted {
    /// A sharer acknowledges an invalidate when it arrives, and gives its mappings up as late as
    /// I7 allows.
    #[cfg(feature = "planted")]
    pub early_ack: bool,
    /// A directory forgets one sharer of a page when a reader is added to it.
    #[cfg(feature = "planted")]
    pub lost_sharer: bool,
}

impl Planted {
    /// No bug.
    pub const NOTHING: Planted = Planted {
        #[cfg(feature = "planted")]
        early_ack: false,
        #[cfg(feature = "planted")]
        lost_sharer: false,
    };

    /// What this build has in every engine, by the names of the features.
    pub const fn in_this_build() -> Option<&'static str> {
        match (
            cfg!(feature = "fault-early-ack"),
            cfg!(feature = "fault-lost-sharer"),
        ) {
            (false, false) => None,
            (true, false) => Some("fault-early-ack"),
            (false, true) => Some("fault-lost-sharer"),
            (true, true) => Some("fault-early-ack, fault-lost-sharer"),
        }
    }

    #[cfg(feature = "planted")]
    pub(crate) const fn early_ack(self) -> bool {
        self.early_ack
    }

    #[cfg(feature = "planted")]
    pub(crate) const fn lost_sharer(self) -> bool {
        self.lost_sharer
    }

    #[cfg(not(feature = "planted"))]
    pub(crate) const fn early_ack(self) -> bool {
        false
    }

    #[cfg(not(feature = "planted"))]
    pub(crate) const fn lost_sharer(self) -> bool {
        false
    }
}

impl Default for Planted {
    /// What this build has in every engine: nothing, but for the features that say otherwise.
    fn default() -> Planted {
        Planted {
            #[cfg(feature = "planted")]
            early_ack: cfg!(feature = "fault-early-ack"),
            #[cfg(feature = "planted")]
            lost_sharer: cfg!(feature = "fault-lost-sharer"),
        }
    }
}
