//! What is read: a file, or something that may come late or never.

use std::fs::{File, Metadata};
use std::io::{self, Cursor, Read};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::super::failure::Failure;
use crate::threads;

/// What is read at a time of something that is no file, in bytes.
const CHUNK: usize = 64 * 1024;

/// The input of an import, opened.
pub(super) enum Input {
    File(File),
    /// Standard input, a pipe, a terminal: reading may wait for ever.
    Stream(Box<dyn Read + Send>),
}

impl Input {
    /// Opens a file; `-` is standard input.
    pub(super) fn open(file: &Path) -> Result<Input, Failure> {
        if is_standard(file) {
            return Ok(Input::Stream(Box::new(io::stdin())));
        }
        let wrong = |error: io::Error| Failure::Local(format!("cannot read {}: {error}", file.display()));
        let opened = File::open(file).map_err(wrong)?;
        let found = opened.metadata().map_err(wrong)?;
        if found.is_dir() {
            return Err(Failure::Local(format!("cannot read {}: it is a folder", file.display())));
        }
        Ok(if found.is_file() { Input::File(opened) } else { Input::Stream(Box::new(opened)) })
    }

    /// Its length in bytes, where that is known.
    pub(super) fn length(&self) -> Option<NonZeroU64> {
        match self {
            Input::File(file) => NonZeroU64::new(file.metadata().ok()?.len()),
            Input::Stream(_) => None,
        }
    }

    /// The input to read from, which fails as soon as `stopped` is disconnected, also while nothing comes.
    pub(super) fn until(self, stopped: Receiver<()>) -> io::Result<Box<dyn Read + Send>> {
        let stream = match self {
            Input::File(file) => return Ok(Box::new(file)),
            Input::Stream(stream) => stream,
        };
        let (found, chunks) = bounded(1);
        // A thread of its own may go on waiting when the import has ended.
        threads::spawn("import-input", move || read_all(stream, &found))?;
        Ok(Box::new(Piped { chunks, stopped, rest: Cursor::default() }))
    }
}

fn is_standard(file: &Path) -> bool {
    file == Path::new("-")
}

/// Whether what is imported is the very file to which failed lines would be written, by whatever name.
pub(super) fn is_same(input: &Path, failures: &Path) -> bool {
    let found = if is_standard(input) { standard_input() } else { input.metadata() };
    let is_one = |a: &Metadata, b: &Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    match (found, failures.metadata()) {
        // Anything else than a file, as a terminal, may be both.
        (Ok(found), Ok(failures)) => found.is_file() && is_one(&found, &failures),
        _ => false,
    }
}

fn standard_input() -> io::Result<Metadata> {
    File::from(io::stdin().as_fd().try_clone_to_owned()?).metadata()
}

/// Reads to the end, or until nobody takes what is read.
fn read_all(mut stream: impl Read, found: &Sender<io::Result<Vec<u8>>>) {
    loop {
        let mut chunk = vec![0; CHUNK];
        let read = match stream.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => {
                chunk.truncate(count);
                Ok(chunk)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let is_end = read.is_err();
        if found.send(read).is_err() || is_end {
            return;
        }
    }
}

/// The other end of that.
struct Piped {
    chunks: Receiver<io::Result<Vec<u8>>>,
    stopped: Receiver<()>,
    rest: Cursor<Vec<u8>>,
}

impl Read for Piped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.rest.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            select! {
                recv(self.chunks) -> chunk => match chunk {
                    Ok(chunk) => self.rest = Cursor::new(chunk?),
                    Err(_) => return Ok(0),
                },
                recv(self.stopped) -> _ => return Err(io::Error::other("the import was stopped")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{self, Read};
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use crossbeam_channel::{bounded, never};

    use super::{CHUNK, Input, is_same};

    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("worn out"))
        }
    }

    #[test]
    fn a_stream_is_read_to_its_end_and_its_error() {
        let text: Vec<u8> = (0..=255).cycle().take(3 * CHUNK + 7).collect();
        let mut read = Vec::new();
        let stream = Input::Stream(Box::new(io::Cursor::new(text.clone())));
        stream.until(never()).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == text);
        let broken = Input::Stream(Box::new((&b"a"[..]).chain(Broken)));
        let error = broken.until(never()).unwrap().read_to_end(&mut read).unwrap_err();
        assert_eq!(error.to_string(), "worn out");
    }

    #[test]
    fn a_stream_on_which_nothing_comes_is_left_when_the_import_is_stopped() {
        let (silent, writer) = io::pipe().unwrap();
        let (go_on, stopped) = bounded::<()>(0);
        let mut input = Input::Stream(Box::new(silent)).until(stopped).unwrap();
        drop(go_on);
        assert!(input.read(&mut [0]).unwrap_err().to_string().contains("stopped"));
        drop(writer);
    }

    #[test]
    fn a_file_is_the_same_under_every_name() {
        let folder = tempfile::tempdir().unwrap();
        let name = |name: &str| folder.path().join(name);
        fs::write(name("data"), "a\n").unwrap();
        fs::write(name("other"), "a\n").unwrap();
        fs::hard_link(name("data"), name("hard")).unwrap();
        symlink("data", name("soft")).unwrap();
        symlink("nowhere", name("dangling")).unwrap();
        let around = folder.path().join("..").join(folder.path().file_name().unwrap()).join("data");
        for same in [name("data"), name("hard"), name("soft"), around] {
            assert!(is_same(&name("data"), &same), "{}", same.display());
            assert!(is_same(&same, &name("data")), "{}", same.display());
        }
        for other in [name("other"), name("new"), name("dangling"), "/dev/null".into()] {
            assert!(!is_same(&name("data"), &other), "{}", other.display());
        }
        assert!(!is_same(Path::new("/dev/null"), Path::new("/dev/null")), "what is no file is not emptied");
    }
}
