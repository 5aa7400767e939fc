//! What is to be written to one connection by any of several threads: whoever comes while nobody writes does it, for all who come meanwhile.

use std::io;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// A buffer that has grown beyond this, in bytes, is given back.
const KEPT: usize = 64 << 10;

/// What waits to be written.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: Mutex<Waiting>,
    /// Something was written, or cannot be.
    written: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// A thread is writing, and will take what has come meanwhile.
    is_writing: bool,
    /// It could not be written: half a frame may have been, so nothing can follow.
    has_failed: bool,
}

impl Waiting {
    fn check(&self) -> io::Result<()> {
        if self.has_failed { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }
}

impl Outbox {
    /// Adds something.
    pub fn put(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        encode(&mut self.waiting.lock().bytes);
    }

    /// How many bytes wait.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().bytes.len()
    }

    /// Writes what waits, until nothing does, or `write` takes less than it is given: then the rest waits for the next time. Nothing where another thread is at it.
    ///
    /// # Errors
    /// As `write`, and ever after: the connection is of no use any more.
    pub fn flush(&self, mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        let mut waiting = self.waiting.lock();
        waiting.check()?;
        if waiting.is_writing {
            return Ok(());
        }
        let mut bytes = Vec::new();
        while !waiting.bytes.is_empty() {
            std::mem::swap(&mut waiting.bytes, &mut bytes);
            waiting.is_writing = true;
            let written = MutexGuard::unlocked(&mut waiting, || write(&bytes));
            waiting.is_writing = false;
            waiting.has_failed |= written.is_err();
            self.written.notify_all();
            let written = written?;
            if written < bytes.len() {
                bytes.drain(..written);
                bytes.append(&mut waiting.bytes);
                waiting.bytes = bytes;
                return Ok(());
            }
            bytes.clear();
        }
        if bytes.capacity() <= KEPT {
            waiting.bytes = bytes;
        }
        Ok(())
    }

    /// Waits while another thread is writing and more than so many bytes wait.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn wait_below(&self, most: usize) -> io::Result<()> {
        let mut waiting = self.waiting.lock();
        while waiting.is_writing && waiting.bytes.len() > most {
            self.written.wait(&mut waiting);
        }
        waiting.check()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    #[test]
    fn what_comes_while_somebody_writes_goes_out_with_his_next_write() {
        let outbox = Outbox::default();
        outbox.put(|out| out.push(1));
        let mut writes = Vec::new();
        let write = |bytes: &[u8]| {
            writes.push(bytes.to_vec());
            if writes.len() == 1 {
                outbox.put(|out| out.push(2));
                outbox.put(|out| out.push(3));
                assert_eq!(outbox.waiting(), 2);
                outbox.flush(|_| panic!("somebody writes already")).unwrap();
            }
            Ok(bytes.len())
        };
        outbox.flush(write).unwrap();
        assert_eq!(writes, [vec![1], vec![2, 3]]);
        assert_eq!(outbox.waiting(), 0);
    }

    #[test]
    fn nothing_is_written_after_an_error_and_everybody_hears_of_it() {
        let outbox = Outbox::default();
        outbox.put(|out| out.push(1));
        assert!(outbox.flush(|_| Err(io::ErrorKind::BrokenPipe.into())).is_err());
        outbox.put(|out| out.push(2));
        assert!(outbox.flush(|_| panic!("half a frame may be written")).is_err());
        assert!(outbox.wait_below(0).is_err());
    }

    #[test]
    fn what_is_not_taken_stays_before_what_comes_meanwhile() {
        let outbox = Outbox::default();
        outbox.put(|out| out.extend([1, 2, 3]));
        outbox.flush(|_| Ok(0)).unwrap();
        let write = |bytes: &[u8]| {
            outbox.put(|out| out.push(4));
            Ok(bytes.len() - 1)
        };
        outbox.flush(write).unwrap();
        outbox.wait_below(0).unwrap();
        let mut written = Vec::new();
        let write = |bytes: &[u8]| {
            written.extend_from_slice(bytes);
            Ok(bytes.len())
        };
        outbox.flush(write).unwrap();
        assert_eq!(written, [3, 4]);
    }

    #[test]
    fn nothing_is_lost_or_torn_between_threads() {
        let (outbox, barrier) = (Outbox::default(), Barrier::new(4));
        let written = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for thread in 0..4_u8 {
                let (outbox, barrier, written) = (&outbox, &barrier, &written);
                scope.spawn(move || {
                    barrier.wait();
                    for _ in 0..1000 {
                        outbox.put(|out| out.extend_from_slice(&[thread; 3]));
                        outbox
                            .flush(|bytes| {
                                // Some of it at a time.
                                let some = bytes.len().div_ceil(2);
                                written.lock().extend_from_slice(&bytes[..some]);
                                Ok(some)
                            })
                            .unwrap();
                    }
                });
            }
        });
        while outbox.waiting() > 0 {
            let write = |bytes: &[u8]| {
                written.lock().extend_from_slice(bytes);
                Ok(bytes.len())
            };
            outbox.flush(write).unwrap();
        }
        let written = written.into_inner();
        assert_eq!(written.len(), 4 * 3000);
        assert!(written.chunks(3).all(|frame| frame.iter().all(|byte| *byte == frame[0])));
    }
}
