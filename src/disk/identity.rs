//! Whose folder it is.

use serde::{Deserialize, Serialize};

use super::folder::{Folder, read_all, replace};
use crate::model::address::Address;

const NAME: &str = "identity";
/// The form of all that is in the folder: a number that grows with every form that older programs cannot read.
const FORM: u32 = 1;

/// The identity of a node that keeps its replicas, as it stands in the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The form of the folder.
    pub(super) form: u32,
    /// The random number under which the node holds its replicas, in 16 hexadecimal digits: another folder has another one.
    pub(super) id: String,
    /// The address of the node.
    pub(super) address: Address,
    /// How often a node was started with the folder, this time included.
    pub(super) starts: u64,
}

/// What can be read of a folder of any form.
#[derive(Deserialize)]
struct AnyForm {
    form: u32,
}

impl Identity {
    pub(super) fn number(&self) -> Option<u64> {
        u64::from_str_radix(&self.id, 16).ok().filter(|id| *id != 0 && *id != u64::MAX)
    }
}

/// Begins a start of a node with its folder: takes the folder's identity, or gives it one where it is empty.
///
/// # Errors
/// A sentence that says why the folder is not this node's, and what to do. It was not changed then.
pub(super) fn begin(
    folder: &dyn Folder,
    own: &Address,
    draw: impl FnOnce() -> u64,
) -> Result<Identity, String> {
    let name = folder.name();
    let is_there = |error: std::io::Error| {
        format!("DATA_DIR {name} cannot be read ({error}): see to its rights and its disk")
    };
    let names = folder.list().map_err(is_there)?;
    let mut identity = if names.iter().any(|name| name == NAME) {
        read(folder, own)?
    } else if let Some(other) = names.iter().find(|name| !is_of_beginning(name)) {
        return Err(format!(
            "DATA_DIR {name} holds {other} and no file {NAME}: it is no folder of a node, or was damaged. Name an empty folder, \
             or restore {NAME} from the same node's backup"
        ));
    } else {
        Identity { form: FORM, id: format!("{:016x}", draw()), address: own.clone(), starts: 0 }
    };
    identity.starts += 1;
    let form = serde_json::to_vec_pretty(&identity).expect("our own types are JSON");
    replace(folder, NAME, &form).map_err(|error| {
        format!("DATA_DIR {name} cannot be written ({error}): see to its rights and its disk")
    })?;
    Ok(identity)
}

/// A file that a first start may leave behind that was cut off before the folder had an identity.
fn is_of_beginning(name: &str) -> bool {
    ["lock", "lost+found", "identity.new"].contains(&name)
}

fn read(folder: &dyn Folder, own: &Address) -> Result<Identity, String> {
    let identity = read_any(folder)?;
    if identity.address != *own {
        return Err(format!(
            "DATA_DIR {} belongs to the node {}, and ADDRESS is {own}: name that node's own folder, or set the ADDRESS of the folder. \
             A node moves to another address by a view change",
            folder.name(),
            identity.address
        ));
    }
    Ok(identity)
}

/// The identity of whichever node's folder it is.
///
/// # Errors
/// A sentence, where it is none's, or of a newer form.
pub(super) fn read_any(folder: &dyn Folder) -> Result<Identity, String> {
    let name = folder.name();
    let damaged = |why: &dyn std::fmt::Display| {
        format!(
            "DATA_DIR {name}: {NAME} cannot be read ({why}): restore it from the same node's backup, or name an empty folder, with \
             which the node begins anew and is filled by the others"
        )
    };
    let bytes = read_all(folder, NAME).map_err(|error| damaged(&error))?;
    let AnyForm { form } = serde_json::from_slice(&bytes).map_err(|error| damaged(&error))?;
    if form > FORM {
        return Err(format!(
            "DATA_DIR {name} is of form {form}, and this program knows forms up to {FORM}: run the version that has written it, or a newer one"
        ));
    }
    let identity: Identity = serde_json::from_slice(&bytes).map_err(|error| damaged(&error))?;
    if identity.number().is_none() {
        return Err(damaged(&"it names no id"));
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeFolder;
    use super::*;

    fn start(folder: &FakeFolder, own: &str) -> Result<Identity, String> {
        begin(folder, &own.parse().unwrap(), || 0xfeed)
    }

    #[test]
    fn a_folder_stays_its_nodes_and_counts_the_starts() {
        let folder = FakeFolder::default();
        let first = start(&folder, "n1:7").unwrap();
        assert_eq!((first.number(), first.starts), (Some(0xfeed), 1));
        let second = begin(&folder, &"n1:7".parse().unwrap(), || 9).unwrap();
        assert_eq!((second.number(), second.starts), (Some(0xfeed), 2));
    }

    type Row<'a> = (&'a str, &'a dyn Fn(&mut Vec<u8>), &'a str);

    #[test]
    fn a_folder_that_is_not_this_nodes_is_refused_and_left_as_it_is() {
        let refused = |own: &str, edit: &dyn Fn(&mut Vec<u8>)| {
            let folder = FakeFolder::default();
            start(&folder, "n1:7").unwrap();
            folder.edit(NAME, edit);
            let before = read_all(&folder, NAME).unwrap();
            let error = start(&folder, own).unwrap_err();
            assert_eq!(read_all(&folder, NAME).unwrap(), before);
            error
        };
        let replace = |from: &'static str, to: &'static str| {
            move |bytes: &mut Vec<u8>| {
                *bytes = String::from_utf8(bytes.clone()).unwrap().replace(from, to).into();
            }
        };
        let table: [Row; 5] = [
            ("n2:7", &|_| (), "belongs to the node n1:7, and ADDRESS is n2:7"),
            ("n1:7", &replace("\"form\": 1", "\"form\": 2"), "is of form 2"),
            ("n1:7", &replace("000000000000feed", "0000000000000000"), "names no id"),
            ("n1:7", &|bytes| bytes.truncate(20), "cannot be read"),
            ("n1:7", &|bytes| bytes.clear(), "cannot be read"),
        ];
        for (own, edit, part) in table {
            let error = refused(own, edit);
            assert!(error.contains(part), "{part}: {error}");
        }
        let folder = FakeFolder::default();
        folder.create("holiday.jpg").unwrap();
        assert!(start(&folder, "n1:7").unwrap_err().contains("holds holiday.jpg and no file identity"));
    }
}
