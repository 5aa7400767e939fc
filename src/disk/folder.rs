//! A folder on a disk, as all that is kept goes through it: tests put another one in its place that loses what was not synced.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files of this node only.
const MODE: u32 = 0o600;

/// A folder without folders in it.
///
/// What is written to a file is there after a power cut only once [`DiskFile::sync`] has returned; that there is a file, or under which name,
/// only once [`Folder::sync`] has.
pub trait Folder: Debug + Send + Sync {
    /// What people call it.
    fn name(&self) -> String;

    /// The names of the files in it.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file that is there.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Makes an empty file, in place of one that is there.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name, in place of one that has it: at one moment.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Waits until the names are on the disk.
    fn sync(&self) -> io::Result<()>;

    /// For how many bytes more there is room, where that is known.
    fn free(&self) -> Option<u64>;

    /// Takes the folder for this process alone, for as long as what is returned lives; nothing where another process has it.
    fn lock(&self) -> io::Result<Option<Box<dyn Send + Sync>>>;
}

/// A file that is read and written at any place.
pub trait DiskFile: Debug + Send + Sync {
    /// How long it is, in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Reads as much as there is room for, all of which has to be there.
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes all of it.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts it off, or makes it longer by zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Waits until what was written is on the disk.
    fn sync(&self) -> io::Result<()>;
}

/// All of a file.
///
/// # Errors
/// Those of the system.
pub fn read_all(folder: &dyn Folder, name: &str) -> io::Result<Vec<u8>> {
    let file = folder.open(name)?;
    let mut bytes = vec![0; usize::try_from(file.length()?).map_err(|_| io::ErrorKind::FileTooLarge)?];
    file.read(0, &mut bytes)?;
    Ok(bytes)
}

/// Has a file hold this and nothing else, after a power cut too: whoever reads it finds all of the new or all of the old.
///
/// # Errors
/// Those of the system.
pub fn replace(folder: &dyn Folder, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = format!("{name}.new");
    let file = folder.create(&new)?;
    file.write(0, bytes)?;
    file.sync()?;
    folder.rename(&new, name)?;
    folder.sync()
}

/// A folder of the system.
#[derive(Debug)]
pub struct SystemFolder(PathBuf);

impl SystemFolder {
    /// The folder at a path.
    ///
    /// # Errors
    /// Where there is none.
    pub fn that_is_there(path: &Path) -> io::Result<Self> {
        if path.is_dir() { Ok(Self(path.to_owned())) } else { Err(io::ErrorKind::NotADirectory.into()) }
    }

    /// The folder at a path, which is made where it is not there.
    ///
    /// # Errors
    /// Those of the system.
    pub fn at(path: &Path) -> io::Result<Self> {
        if !path.is_dir() {
            std::fs::create_dir_all(path)?;
            if let Some(parent) = path.canonicalize()?.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(Self(path.to_owned()))
    }
}

impl Folder for SystemFolder {
    fn name(&self) -> String {
        self.0.display().to_string()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(&self.0)?.map(|entry| Ok(entry?.file_name()));
        names.map(|name| name.map(|name: std::ffi::OsString| name.to_string_lossy().into_owned())).collect()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.0.join(name))?;
        Ok(Arc::new(SystemFile(file)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(MODE);
        Ok(Arc::new(SystemFile(options.open(self.0.join(name))?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.0.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn free(&self) -> Option<u64> {
        let found = nix::sys::statvfs::statvfs(&self.0).ok()?;
        Some(found.blocks_available().saturating_mul(found.fragment_size()))
    }

    fn lock(&self) -> io::Result<Option<Box<dyn Send + Sync>>> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(MODE).open(self.0.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

#[derive(Debug)]
struct SystemFile(File);

impl DiskFile for SystemFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, at)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        // The length goes along; only times may not.
        self.0.sync_data()
    }
}
