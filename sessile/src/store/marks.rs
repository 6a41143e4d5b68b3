//! What is forgotten on request, as one server knows it: from its configuration and from the shared
//! store. Marks are only added while it runs, so that a store that is gone, or came back empty, brings
//! nothing back.

use std::sync::{Arc, PoisonError, RwLock};

use sessile_proto::ticket::Forgotten;

#[derive(Default)]
pub(super) struct Marks(RwLock<Arc<Forgotten>>);

impl Marks {
    /// Every mark, as a handshake compares sessions with them.
    pub(super) fn known(&self) -> Arc<Forgotten> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds marks, and says whether any was new.
    pub(super) fn learn(&self, marks: &Forgotten) -> bool {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut all = Forgotten::clone(&known);
        all.merge(marks);
        let is_news = all != **known;
        if is_news {
            *known = Arc::new(all);
        }
        is_news
    }
}
