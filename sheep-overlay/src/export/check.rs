//! What a form cannot carry, found and named before anything is written.

use anyhow::{Result, bail};
use rustix::fs::FileType;

use super::merged::Found;
use crate::backend::kernel;
use crate::diff::escaped;
use crate::inode::{Inode, xattr_names};
use crate::layer;

/// What a form can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// What a layer of an image can.
    Layer,
    /// What a tar can: also names that in a layer would delete something.
    Tar,
    /// What a directory can: all but owners that are not known here.
    Directory,
}

/// Looks at entries before they are exported.
pub struct Check {
    carries: Carries,
    /// Who stands for users and groups that are not known here.
    nobody: (Option<u32>, Option<u32>),
    names: Vec<u8>,
}

impl Check {
    /// What can be carried; `idmapped`, where owners are shown as others.
    pub fn new(idmapped: bool, carries: Carries) -> Self {
        let overflow = |file: &str| std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u32>().ok());
        let nobody = match kernel::in_user_namespace() || idmapped {
            true => (overflow("/proc/sys/kernel/overflowuid"), overflow("/proc/sys/kernel/overflowgid")),
            false => (None, None),
        };
        Check { carries, nobody, names: Vec::new() }
    }

    /// Errors where a name in a path would be read as a mark. For what is deleted too: `.wh..wh.x` means nothing.
    pub fn path(&self, path: &[u8]) -> Result<()> {
        let name = path.split(|byte| *byte == b'/').find(|name| name.starts_with(b".wh."));
        match name.filter(|_| self.carries == Carries::Layer) {
            None => Ok(()),
            Some(name) => bail!(
                "/{}: a layer cannot carry the name {}, which in it would delete a file; '--as tar' and '--as dir' can",
                escaped(path),
                escaped(name)
            ),
        }
    }

    /// Errors where an entry cannot be carried; the caller adds which.
    pub fn entry(&mut self, found: &Found<'_>) -> Result<()> {
        if self.nobody.0 == Some(found.stat.st_uid) || self.nobody.1 == Some(found.stat.st_gid) {
            bail!(
                "its owner is not known here, for your user namespace does not map him; root can export it, with --root DATA-DIRECTORY"
            );
        }
        if self.carries == Carries::Directory {
            return is_whole(found, &mut self.names);
        }
        fits_a_tar(found, &mut self.names)
    }
}

/// Errors where an entry's content or place is elsewhere. `names` is scratch space, and has the names of its extended
/// attributes afterwards.
fn is_whole(found: &Found<'_>, names: &mut Vec<u8>) -> Result<()> {
    Inode::Named(found.dir, found.name).list_xattrs(names)?;
    for name in xattr_names(names).map(|name| name.to_bytes()) {
        if layer::METACOPY.iter().any(|mark| mark.as_bytes() == name) {
            bail!("only its attributes are in its layer (overlay.metacopy); its content cannot be found");
        }
        if layer::REDIRECT.iter().any(|mark| mark.as_bytes() == name) {
            bail!("renamed in its layer (overlay.redirect), which cannot be read without OverlayFS");
        }
    }
    Ok(())
}

/// Errors where a tar cannot carry an entry as it is; the caller adds which. `names` is scratch space.
pub fn fits_a_tar(found: &Found<'_>, names: &mut Vec<u8>) -> Result<()> {
    is_whole(found, names)?;
    if FileType::from_raw_mode(found.stat.st_mode) == FileType::Socket {
        bail!("a socket, which a tar cannot carry; delete it");
    }
    for name in xattr_names(names).filter(|name| !layer::is_bookkeeping(name.to_bytes())) {
        match name.to_str() {
            Ok(text) if !text.contains('=') => {}
            Ok(text) => {
                bail!("an extended attribute with '=' in its name, {text}, which a tar cannot carry")
            }
            Err(_) => bail!("an extended attribute whose name is not UTF-8, which a tar cannot carry"),
        }
    }
    Ok(())
}
