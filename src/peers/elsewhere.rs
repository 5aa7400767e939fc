//! Requests by HTTP that are not to be waited for any more, as another node is to be asked by now.
//!
//! Whoever asks does so on a thread of its own, deep inside of the client under us, where the transport waits in slices. So what it waits for is noted with the thread, and the
//! transport looks after each slice whether somebody has said that it is elsewhere.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

thread_local! {
    /// What this thread asks about, if anybody may say that it is elsewhere.
    static ASKED: RefCell<Option<Arc<Asked>>> = const { RefCell::new(None) };
}

/// The requests that wait for one node.
#[derive(Debug, Default)]
pub(super) struct ByHttp(Mutex<Vec<Arc<Asked>>>);

/// One of them.
#[derive(Debug)]
struct Asked {
    /// The group that is asked.
    group: u64,
    is_elsewhere: AtomicBool,
}

/// Takes it out again, however it ends.
struct UnderWay<'a>(&'a ByHttp, Arc<Asked>);

impl ByHttp {
    /// Has something about a group asked by this thread.
    pub(super) fn ask<T>(&self, group: u64, ask: impl FnOnce() -> T) -> T {
        let asked = Arc::new(Asked { group, is_elsewhere: AtomicBool::new(false) });
        self.0.lock().push(Arc::clone(&asked));
        let under_way = UnderWay(self, Arc::clone(&asked));
        ASKED.set(Some(asked));
        let answer = ask();
        drop(under_way);
        answer
    }

    /// What is asked about one of these groups is to be asked elsewhere.
    pub(super) fn abandon(&self, is_elsewhere: impl Fn(u64) -> bool) {
        for asked in self.0.lock().iter().filter(|asked| is_elsewhere(asked.group)) {
            asked.is_elsewhere.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        ASKED.set(None);
        self.0.0.lock().retain(|asked| !Arc::ptr_eq(asked, &self.1));
    }
}

/// Whether what this thread asks is to be asked elsewhere.
pub(super) fn is_elsewhere() -> bool {
    ASKED.with_borrow(|asked| asked.as_ref().is_some_and(|asked| asked.is_elsewhere.load(Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_elsewhere_once_somebody_says_so_of_its_group() {
        let by_http = ByHttp::default();
        by_http.abandon(|_| true);
        assert_eq!(by_http.ask(7, || 1), 1);
        by_http.ask(7, || {
            assert!(!is_elsewhere(), "what was said before is no news");
            by_http.abandon(|group| group == 8);
            assert!(!is_elsewhere());
            by_http.abandon(|group| group == 7);
            assert!(is_elsewhere());
        });
        assert!(!is_elsewhere() && by_http.0.lock().is_empty());
    }
}
